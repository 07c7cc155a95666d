"""DSIR: data selection by importance resampling on hashed n-grams.

Letters: ``n`` rows, ``T`` targets, ``B`` buckets.

Differences from the package `data-selection`: the raw distribution is fitted on a random
sample of rows instead of the head of each file, everything random hangs on a seed and the
id of a row, and asking for more rows than there are returns all of them.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from projections import (
    DataError,
    FolderCheckpoint,
    Provenance,
    Scores,
    Texts,
    as_ids,
    as_texts,
    check_at_least,
    check_one_of,
    check_ray_arguments,
    replacing,
)
from selection.base import Selection
from selection.dsir.ngrams import HashedNgrams
from selection.dsir.passes import CountRows, LevelCounts, Walk, Weighed, WeighRows
from selection.dsir.resampling import Draw, Resampler
from selection.dsir.tokens import Tokenizer

SMALLEST = 1e-8  # is added to each probability before its logarithm
FIT_SHARE = 100_000  # n-grams a bucket that are enough to know a distribution
Length = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class DSIR:
    r"""Choose rows of a large raw dataset that look like a target.

    With ``p`` and ``q`` the distributions of hashed n-grams in the target and in the raw
    data, and ``z`` the counts of a text,

    .. math:: \log w(z) = \sum_j z_j (\log(p_j + 10^{-8}) - \log(q_j + 10^{-8})),

    and rows are drawn without replacement with probability proportional to ``w`` by the
    Gumbel top-k rule.

    Args:
        ngrams: The n-grams.
        min_length: Rows with fewer tokens are never chosen.
        smoothing: Pseudo-count a bucket of the targets. Small targets need one: without,
            an n-gram that the target lacks costs about 9 nats each time.
        num_ngrams_to_fit: The raw distribution is fitted on a random sample of rows, by id,
            with at most so many n-grams, and at least half of them; by default 100,000 a
            bucket. 0 is for all.
        length: ``"sum"`` is as published, where long rows have large weights of either
            sign; ``"mean"`` divides by the number of n-grams.
        chunk_tokens: Cut rows into pieces of so many tokens, which are weighed and chosen
            on their own, with the ids ``row:piece``.
        seed: Seed of the sample and of the draw.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> raw = ["the cat sat on the mat", "stocks fell again today", "a cat and a dog"]
        >>> dsir = DSIR(min_length=1, smoothing=0.01, length="mean", seed=0)
        >>> fitted = dsir.fit(raw, ["the cat ran"])
        >>> fitted.log_weights(raw)["log_weight"].values.round(1).tolist()
        [-4.5, -6.0, -5.7]
        >>> fitted.select(raw, num_selected=1, temperature=0).ids
        array([0])

    References:
        Xie et al., Data selection for language models via importance resampling (NeurIPS
        2023), arXiv:2302.03169, Alg. 1.
    """

    ngrams: HashedNgrams = field(default_factory=HashedNgrams)
    min_length: int = 100
    smoothing: float = 0.0
    num_ngrams_to_fit: int | None = None
    length: Length = "sum"
    chunk_tokens: int | None = None
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("min_length", self.min_length, 0)
        check_at_least("smoothing", self.smoothing, 0)
        check_at_least("num_ngrams_to_fit", self.num_ngrams_to_fit or 0, 0)
        check_one_of("length", self.length, ("sum", "mean"))
        check_at_least("chunk_tokens", self.chunk_tokens or 1, 1)

    def fit(
        self, raw: Any, target: Any, *, num_workers: int = 1, path: str | Path | None = None
    ) -> "FittedDSIR":
        """Count n-grams in the raw data and in the targets.

        Args:
            raw: Anything that `Texts` takes, or `Texts` with names of columns.
            target: Likewise; a mapping holds several targets, which are kept apart.
            num_workers: Workers that count.
            path: Folder where a killed run goes on.

        Raises:
            DataError: A row cannot be read, or the raw data or a target has no token.
        """
        named = target if isinstance(target, Mapping) else {"": target}
        everything = replace(self, num_ngrams_to_fit=0)
        counted = {
            name: everything._count(data, f"target {name}".strip(), num_workers, path)
            for name, data in named.items()
        }
        sample = self._count(raw, "raw", num_workers, path)
        return FittedDSIR(
            self,
            tuple(named),
            np.stack([one.counts for one in counted.values()]),
            sample.counts,
            {"raw_share": sample.share, "raw_rows": sample.num_rows},
        )

    @property
    def most_ngrams(self) -> int | None:
        """The most n-grams of the raw data to count; None for all."""
        if self.num_ngrams_to_fit is None:
            return FIT_SHARE * self.ngrams.num_buckets
        return self.num_ngrams_to_fit or None

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        tokenizer = self.ngrams.tokenizer
        name = None if tokenizer is None else getattr(tokenizer, "__qualname__", "custom")
        ngrams = {**asdict(replace(self.ngrams, tokenizer=None)), "tokenizer": name}
        settings = asdict(replace(self, ngrams=HashedNgrams()))
        return {"kind": "DSIR", **settings, "ngrams": ngrams}

    def walk(
        self,
        texts: Texts,
        part: str,
        num_workers: int,
        path: str | Path | None,
        about: Mapping[str, Any] | None = None,
    ) -> Walk:
        """Return how a pass is carried out, going on in a folder if there is one.

        Args:
            texts: What is walked over.
            part: What the pass is for.
            num_workers: Number of workers.
            path: The folder.
            about: What else its result depends on, as plain JSON values.
        """
        if texts.on_ray:
            check_ray_arguments(num_workers=num_workers, path=path)
        checkpoint = None
        if path is not None:
            description = {"settings": self.describe(), "data": texts.fingerprint, **(about or {})}
            checkpoint = FolderCheckpoint(Path(path) / part.replace(" ", "-"), description)
        processes = self.ngrams.tokenizer is not None
        if processes and num_workers > 1:
            _check_sendable(self.ngrams.tokenizer, num_workers)
        return Walk(num_workers=num_workers, processes=processes, checkpoint=checkpoint)

    def _count(
        self, data: Any, part: str, num_workers: int, path: str | Path | None
    ) -> LevelCounts:
        """Count the n-grams of a sample."""
        texts = as_texts(data)
        counts = LevelCounts("counts", self.ngrams.num_buckets, self.most_ngrams)
        work = CountRows(ngrams=self.ngrams, seed=self.seed, chunk_tokens=self.chunk_tokens)
        self.walk(texts, part, num_workers, path)(
            texts, work, [counts], description=f"counting {part}", argument=lambda: counts.lowest
        )
        if not counts.counts.any():
            raise DataError(f"the {part} data must hold at least one token. It holds none.")
        return counts


@dataclass(frozen=True)
class FittedDSIR:
    """Distributions of hashed n-grams, and the weights that they give.

    Args:
        settings: How it was fitted.
        targets: Names of the targets; an empty one if there is only one.
        target_counts: N-grams of each target, ``T B``.
        raw_counts: N-grams of the sample of the raw data, ``B``.
        provenance: Size of that sample.
    """

    settings: DSIR
    targets: tuple[str, ...]
    target_counts: Int[np.ndarray, "T B"]
    raw_counts: Int[np.ndarray, " B"]
    provenance: Provenance = field(default_factory=dict)

    @cached_property
    def target_probabilities(self) -> Float[np.ndarray, "T B"]:
        """Probability of each bucket in each target."""
        smooth = self.target_counts + self.settings.smoothing
        return smooth / smooth.sum(1, keepdims=True)

    @cached_property
    def raw_probabilities(self) -> Float[np.ndarray, " B"]:
        """Probability of each bucket in the raw data."""
        return self.raw_counts / self.raw_counts.sum()

    @cached_property
    def log_ratios(self) -> Float[np.ndarray, "T B"]:
        """What one n-gram of each bucket adds to the log weight of a row."""
        target, raw = self.target_probabilities, self.raw_probabilities
        return np.log(target + SMALLEST) - np.log(raw + SMALLEST)

    @property
    def proportions(self) -> dict[str, float]:
        """The share of each target in the n-grams of all."""
        totals = self.target_counts.sum(1)
        return dict(zip(self.targets, (totals / totals.sum()).tolist(), strict=True))

    def log_weights(self, raw: Any, *, num_workers: int = 1) -> Scores:
        """Return log weights and number of tokens of every row, in memory.

        Args:
            raw: Anything that `Texts` takes.
            num_workers: Workers that weigh.

        Returns:
            The columns ``log_weight`` (with several targets ``log_weight/name``) and
            ``num_tokens``; a larger weight is more like the target.

        Raises:
            DataError: A row cannot be read, or an id occurs twice.
        """
        kept = Collected()
        texts = as_texts(raw)
        walk = self.settings.walk(texts, "weights", num_workers, None)
        walk(texts, self.weigher(), [kept], description="weighing")
        weights = np.concatenate([part.log_weights for part in kept.parts] or [np.empty((0, 1))])
        tokens = np.concatenate([part.num_tokens for part in kept.parts] or [np.empty(0, int)])
        names = [f"log_weight/{name}" if name else "log_weight" for name in self.targets]
        columns = dict(zip(names, weights.T.copy(), strict=True))
        provenance = {"dsir": self.describe()}
        columns["num_tokens"] = tokens
        return Scores(_ids_of(kept.parts), columns, provenance=provenance)

    def select(
        self,
        raw: Any,
        *,
        num_selected: int | None = None,
        num_tokens: int | None = None,
        num_workers: int = 1,
        path: str | Path | None = None,
        **draw: Any,
    ) -> Selection:
        """Draw rows in one pass, holding no more than the rows that are drawn.

        Args:
            raw: Anything that `Texts` takes.
            num_selected: Number of rows; all that are long enough if there are fewer.
            num_tokens: Number of tokens instead; the row that reaches it is in.
            num_workers: Workers that weigh.
            path: Folder where a killed run goes on.
            **draw: More settings of `Draw`: ``temperature``, ``proportions``,
                ``domain_shares``, ``assignment``, ``seed``.

        Returns:
            The rows, best key first, with their keys, log weights and lengths. Why others
            are not among them is said by `rejections`, row by row and on request, since
            there may be billions.

        Raises:
            DataError: A row cannot be read, or two that are drawn have the same id.
        """
        texts = as_texts(raw)
        resampler = Resampler(self.draw(num_selected, num_tokens, **draw), self.targets)
        about = {"draw": asdict(resampler.draw), "fit": self.fingerprint}
        walk = self.settings.walk(texts, "draw", num_workers, path, about)
        walk(texts, self.weigher(), [resampler], description="weighing")
        chosen = resampler.selection()
        return replace(chosen, provenance={"dsir": self.describe(), **chosen.provenance})

    def draw(
        self, num_selected: int | None = None, num_tokens: int | None = None, **draw: Any
    ) -> Draw:
        """Return the settings of a draw, with those of the fit where none are given."""
        draw.setdefault("seed", self.settings.seed)
        draw.setdefault("min_length", self.settings.min_length)
        if draw.get("proportions") is None and len(self.targets) > 1:
            draw["proportions"] = self.proportions
        return Draw(num_selected=num_selected, num_tokens=num_tokens, **draw)

    def rejections(
        self, raw: Any, chosen: Selection, *, num_workers: int = 1
    ) -> Iterator[tuple[Any, str]]:
        """Yield id and reason of every row that was not chosen, in the order of the data.

        Args:
            raw: The data that was drawn from.
            chosen: What was drawn.
            num_workers: Workers that weigh the rows again.
        """
        kept = {str(row_id) for row_id in chosen.ids.tolist()}
        texts = as_texts(raw)
        walk = self.settings.walk(texts, "reasons", num_workers, None)
        shares = chosen.provenance["draw"]["domain_shares"]
        domains = None if shares is None else set(shares)
        for rows in walk.results(texts, self.weigher(), description="explaining"):
            best = rows.log_weights.max(1).tolist()
            names = [None] * len(best) if rows.batch.domains is None else rows.batch.domains
            for row_id, weight, length, name in zip(
                rows.batch.ids.to_pylist(), best, rows.num_tokens.tolist(), names, strict=True
            ):
                if str(row_id) not in kept:
                    other = domains is not None and str(name) not in domains
                    yield row_id, self._reason(weight, length, str(name) if other else None)

    def _reason(self, weight: float, length: int, domain: str | None) -> str:
        """Say why a row was not drawn."""
        if length < self.settings.min_length:
            return f"{length} tokens are fewer than {self.settings.min_length}"
        if domain is not None:
            return f"nothing is drawn from the domain {domain}"
        return f"not drawn at log weight {weight:.4g}"

    def weigher(self, *, keep_texts: bool = False) -> WeighRows:
        """Return what weighs the rows of a block."""
        settings = self.settings
        return WeighRows(
            ngrams=settings.ngrams,
            table=self.log_ratios,
            mean=settings.length == "mean",
            chunk_tokens=settings.chunk_tokens,
            keep_texts=keep_texts,
        )

    def pooled(self, proportions: Mapping[str, float] | None = None) -> "FittedDSIR":
        """Return one target that is a mixture of all.

        Args:
            proportions: The share of each; by default that of its n-grams.
        """
        shares = proportions or self.proportions
        scaled = self.target_counts / self.target_counts.sum(1, keepdims=True)
        weights = np.array([shares[name] for name in self.targets])
        mixed = (weights / weights.sum()) @ scaled * self.target_counts.sum()
        return replace(self, targets=("",), target_counts=np.rint(mixed).astype(np.int64)[None])

    @property
    def fingerprint(self) -> str:
        """Text that changes with the counts and the settings."""
        digest = sha256(json.dumps(self.settings.describe(), sort_keys=True).encode())
        for counts in (self.target_counts, self.raw_counts):
            digest.update(np.ascontiguousarray(counts).tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return settings and size of the fit as plain JSON values."""
        sizes = dict(zip(self.targets, self.target_counts.sum(1).tolist(), strict=True))
        return {
            "settings": self.settings.describe(),
            "target_ngrams": sizes,
            "raw_ngrams": int(self.raw_counts.sum()),
            **self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Write counts and settings as ``.npz``."""
        note = {
            "settings": self.settings.describe(),
            "targets": self.targets,
            "provenance": dict(self.provenance),
        }
        text = np.frombuffer(json.dumps(note).encode(), np.uint8)
        with replacing(Path(path)) as file:
            np.savez(file, note=text, target=self.target_counts, raw=self.raw_counts)

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Tokenizer | None = None) -> "FittedDSIR":
        """Read what `save` wrote.

        Args:
            path: The file.
            tokenizer: The tokenizer, if it was fitted with one of its own.

        Raises:
            DataError: The file is none, or needs a tokenizer.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                note = json.loads(arrays["note"].tobytes())
                target, raw = arrays["target"], arrays["raw"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path} must be a fitted DSIR, and cannot be read: {error}") from error
        settings = note["settings"]
        settings.pop("kind")
        ngrams = settings.pop("ngrams")
        name = ngrams.pop("tokenizer")
        if (name is None) != (tokenizer is None):
            raise DataError(
                f"{path} was fitted with the tokenizer {name}. Pass "
                + ("none." if name is None else "it as `tokenizer`.")
            )
        fitted = DSIR(ngrams=HashedNgrams(**ngrams, tokenizer=tokenizer), **settings)
        return cls(fitted, tuple(note["targets"]), target, raw, note["provenance"])


class Collected:
    """All weighed rows, in order."""

    name = "rows"

    def __init__(self) -> None:
        """Start with nothing."""
        self.parts: list[Weighed] = []

    def add(self, result: Weighed) -> None:
        """Take the rows of a block."""
        self.parts.append(result)

    def merge(self, other: "Collected") -> None:
        """Take the rows of others."""
        self.parts += other.parts


def _ids_of(parts: Sequence[Weighed]) -> np.ndarray:
    """Return the ids of all rows, whole numbers without a look at each."""
    found = [part.batch.ids for part in parts]
    if found and all(pa.types.is_int64(ids.type) for ids in found):
        return as_ids(np.concatenate([ids.to_numpy() for ids in found]), "the data")
    return as_ids([row_id for ids in found for row_id in ids.to_pylist()], "the data")


def _check_sendable(tokenizer: Tokenizer | None, num_workers: int) -> None:
    """Refuse a tokenizer that worker processes cannot be given."""
    try:
        pickle.dumps(tokenizer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`tokenizer` must be a function at the top of a module, or an object that can be "
            f"pickled, to be sent to {num_workers} processes. Got {tokenizer!r}: {error}. Move it "
            "there, or use `num_workers=1`."
        ) from error
