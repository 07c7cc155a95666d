"""What a draw by DSIR did to the data: how near it came, and what else it changed.

Letters: ``n`` rows, ``B`` buckets.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from projections import Block, TextBatch, as_texts
from selection.base import Selection
from selection.dsir.estimator import FittedDSIR
from selection.dsir.noise import row_uniforms
from selection.dsir.passes import WeighRows
from selection.dsir.pieces import cut
from selection.dsir.resampling import Draw, Resampler

PSEUDO_COUNT = 0.1  # a bucket, in every distribution that is compared
NUM_SHOWN = 5  # texts at each end
SHOWN = 100  # characters of a text
STEPS = 8  # lengths within a doubling that are told apart
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class DrawReport:
    """Facts about a draw, as plain JSON values.

    Args:
        facts: By name.
    """

    facts: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Return the facts as lines of text."""
        facts = self.facts
        size, largest = _plain(facts["effective_sample_size"]), facts["largest_weight_share"]
        lines = [
            f"effective sample size {size}, largest weight {_plain(largest)} of all",
            "KL to the target: {before:.3f} before, {after:.3f} after, {random:.3f} at random"
            "".format(**facts["kl"]),
            f"tokens a row (10, 50, 90 %): {_three(facts['lengths']['before'])} before, "
            f"{_three(facts['lengths']['after'])} after",
            f"rows shared with the draw of seed {facts['second_seed']}: {facts['agreement']:.1%}",
        ]
        for name, (before, after) in facts["domains"].items():
            lines.append(f"  domain {name}: {before:.1%} before, {after:.1%} after")
        for end in ("largest", "smallest"):
            lines.append(f"{end} log weights:")
            lines += [
                f"  {one['log_weight']:9.1f}  {one['id']}  {one['text']}" for one in facts[end]
            ]
        return lines


def report_draw(
    fitted: FittedDSIR, raw: Any, chosen: Selection, *, num_workers: int = 1
) -> DrawReport:
    """Look at all rows once more, and compare what was drawn with the rest.

    Args:
        fitted: What weighed the rows.
        raw: The data that was drawn from.
        chosen: What was drawn by ``fitted.select``.
        num_workers: Workers that weigh.

    Returns:
        The effective sample size and the largest share of one row in all weights; the KL
        divergence from the target to the raw data, to what was drawn and to as much drawn
        at random, over hashed n-grams with a pseudo-count of 0.1; quantiles of lengths and
        shares of domains before and after; texts with the largest and smallest weights; and
        the share of rows that the next seed draws too.
    """
    note, texts = chosen.provenance, as_texts(raw)
    draw = Draw(**note["draw"])
    eligible = note["rows"] - note["too_short"] - note["weight_zero"]
    kept = frozenset(str(row_id) for row_id in chosen.ids.tolist())
    work = SurveyRows(
        weigher=fitted.weigher(keep_texts=True),
        kept=kept,
        share=len(kept) / max(eligible, 1),
        min_length=draw.min_length,
        seed=draw.seed,
    )
    survey = Survey(fitted.settings.ngrams.num_buckets)
    again = Resampler(replace(draw, seed=draw.seed + 1), fitted.targets)
    walk = fitted.settings.walk(texts, "report", num_workers, None)
    walk(texts, work, [survey, again], description="reporting")
    other = {str(row_id) for row_id in again.selection().ids.tolist()}
    return DrawReport(
        {
            "rows": note["rows"],
            "chosen": len(chosen),
            "tokens": int(np.sum(chosen.columns["num_tokens"])),
            "too_short": note["too_short"],
            "effective_sample_size": note["effective_sample_size"],
            "largest_weight_share": note["largest_weight_share"],
            "second_seed": draw.seed + 1,
            "agreement": len(other & kept) / max(len(kept), 1),
            **survey.facts(_target(fitted, draw)),
        }
    )


@dataclass(frozen=True)
class Surveyed:
    """Rows of a block with their weights, and counts of three sets of rows.

    Args:
        batch: Ids, texts and domains.
        log_weights: Log weights, ``n T``.
        num_tokens: Number of tokens.
        kept: Which rows were drawn.
        counts: N-grams of all rows, of those that were drawn, and of random ones, ``3 B``.
        size: Size of the block.
    """

    batch: TextBatch
    log_weights: Float[np.ndarray, "n T"]
    num_tokens: Int[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    counts: Int[np.ndarray, "3 B"]
    size: int


@dataclass(frozen=True, kw_only=True)
class SurveyRows:
    """Weigh the rows of a block and count those that were drawn.

    Args:
        weigher: What weighs rows.
        kept: Ids that were drawn.
        share: Share of rows that are drawn at random beside them.
        min_length: Rows with fewer tokens are not drawn at random either.
        seed: Seed of that.
    """

    weigher: WeighRows
    kept: frozenset[str]
    share: float
    min_length: int
    seed: int

    def __call__(self, item: tuple[Block, Any]) -> Surveyed:
        """Look at a block."""
        block, _ = item
        batch, _ = cut(block.batch(), self.weigher.chunk_tokens)
        weights, num_tokens = self.weigher.weights(batch.texts)
        ids = batch.ids.cast(pa.large_string()).to_pylist()
        kept = np.array([row_id in self.kept for row_id in ids], dtype=bool)
        drawn = row_uniforms(batch.ids, seed=self.seed, name="dsir/random") < self.share
        drawn &= num_tokens >= self.min_length
        groups = np.zeros((4, self.weigher.ngrams.num_buckets), dtype=np.int64)
        self.weigher.ngrams.count(batch.texts, kept + 2 * drawn, groups)
        counts = np.stack([groups.sum(0), groups[1] + groups[3], groups[2] + groups[3]])
        return Surveyed(batch, weights, num_tokens, kept, counts, block.size)


class Survey:
    """Counts of n-grams, lengths and domains, and the texts at both ends."""

    name = "survey"

    def __init__(self, num_buckets: int) -> None:
        """Start with nothing."""
        self.counts = np.zeros((3, num_buckets), dtype=np.int64)
        self.lengths: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self.domains: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self.ends: dict[str, list[tuple[float, str, str]]] = {"largest": [], "smallest": []}

    def add(self, result: Surveyed) -> None:
        """Take the rows of a block."""
        self.counts += result.counts
        steps = np.rint(np.log2(result.num_tokens + 1) * STEPS).astype(int)
        for which, part in enumerate((steps, steps[result.kept])):
            self.lengths[which].update(part.tolist())
        if result.batch.domains is not None:
            names = result.batch.domains.to_pylist()
            self.domains[0].update(names)
            self.domains[1].update(names[row] for row in np.flatnonzero(result.kept).tolist())
        best = result.log_weights.max(axis=1, initial=-np.inf)
        for end, sign in (("largest", 1), ("smallest", -1)):
            least = np.sort(sign * best)[-NUM_SHOWN:].min(initial=np.inf)
            rows = np.flatnonzero(sign * best >= least).tolist()  # ties go by the id, below
            new = [(sign * float(best[row]), *_row(result.batch, row)) for row in rows]
            self.ends[end] = heapq.nlargest(NUM_SHOWN, self.ends[end] + new)

    def merge(self, other: "Survey") -> None:
        """Take the rows of another one."""
        self.counts += other.counts
        for which in range(2):
            self.lengths[which].update(other.lengths[which])
            self.domains[which].update(other.domains[which])
        for end, rows in other.ends.items():
            self.ends[end] = heapq.nlargest(NUM_SHOWN, self.ends[end] + rows)

    def facts(self, target: Float[np.ndarray, " B"]) -> dict[str, Any]:
        """Return what was found, with divergences from the target."""
        names = ("before", "after", "random")
        return {
            "kl": {
                name: kl_divergence(target, counts)
                for name, counts in zip(names, self.counts, strict=True)
            },
            "lengths": {
                name: [_quantile(lengths, share) for share in QUANTILES]
                for name, lengths in zip(names, self.lengths, strict=False)
            },
            "domains": {
                name: [one[name] / max(one.total(), 1) for one in self.domains]
                for name, _ in self.domains[0].most_common(20)
            },
            **{
                end: [
                    {"log_weight": sign * weight, "id": row_id, "text": text}
                    for weight, row_id, text in self.ends[end]
                ]
                for end, sign in (("largest", 1), ("smallest", -1))
            },
        }


def kl_divergence(target: Int[np.ndarray, " B"] | Float[np.ndarray, " B"], counts: Any) -> float:
    """Return the KL divergence between two sets of counts, each with a pseudo-count.

    Example:
        >>> kl_divergence(np.array([5.0, 5.0]), np.array([50, 50]))
        0.0
    """
    p, q = target + PSEUDO_COUNT, counts + PSEUDO_COUNT
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _target(fitted: FittedDSIR, draw: Draw) -> Float[np.ndarray, " B"]:
    """Return the counts of the target, or of the mixture of several that was drawn for."""
    if len(fitted.targets) > 1:
        fitted = fitted.pooled(draw.proportions)
    return fitted.target_counts[0].astype(np.float64)


def _row(batch: TextBatch, row: int) -> tuple[str, str]:
    """Return the id of a row and the beginning of its text."""
    text = " ".join(batch.texts[row].as_py()[: 4 * SHOWN].split())
    return str(batch.ids[row].as_py()), text[:SHOWN]


def _quantile(lengths: Counter[int], share: float) -> int | None:
    """Return a quantile of lengths that were counted in steps, or None of none."""
    total = lengths.total()
    seen = 0
    for step, count in sorted(lengths.items()):
        seen += count
        if seen >= share * total:
            return round(2 ** (step / STEPS) - 1)
    return None


def _three(lengths: Sequence[int | None]) -> str:
    """Return three numbers."""
    return ", ".join("none" if one is None else f"{one:,}" for one in lengths)


def _plain(value: Any) -> str:
    """Return a number, or one for each target."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return "none" if value is None else f"{value:.3g}"
