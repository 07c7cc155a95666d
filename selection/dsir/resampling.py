"""Sampling rows without replacement by their weights, in one pass and in constant memory.

Letters: ``n`` rows, ``T`` targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections import (
    DataError,
    NonFiniteError,
    Scores,
    check_at_least,
    check_between,
    check_one_of,
)
from selection.base import Selection
from selection.dsir.noise import gumbel
from selection.dsir.top_rows import TopRows, Unit, num_within

Assignment = Literal["in turn", "best"]
COUNTERS = ("rows", "short", "impossible", "numbered")
EVERY_DOMAIN = ""


@dataclass(frozen=True, kw_only=True)
class Draw:
    r"""How many rows are drawn, and from where.

    Row ``i`` has the key :math:`\log w_i / \tau + g_i` with Gumbel noise ``g`` that belongs
    to seed, target and row id; the largest keys are drawn. That samples without replacement
    with probability proportional to :math:`w^{1/\tau}`.

    Args:
        num_selected: Number of rows to draw, or else
        num_tokens: number of tokens; the row that reaches it is in.
        temperature: :math:`\tau`. 0 takes the largest weights without noise; more than 1
            comes closer to drawing at random.
        min_length: Rows with fewer tokens are not drawn.
        proportions: Share of each target, if there are several. They are scaled to sum to 1.
        domain_shares: Share of each domain of the raw data, scaled likewise; other domains
            are not drawn from. A domain that has too few rows gives all it has.
        assignment: With several targets a row may be wanted by two. ``"in turn"`` lets
            targets draw one after the other from what is left, as published; ``"best"``
            gives it to the target with the larger key, so that their order does not matter.
        seed: Seed of the noise.

    Raises:
        ValueError: A number is out of range, or not exactly one of the two is given.

    References:
        Kool et al., Stochastic beams and where to find them (ICML 2019), arXiv:1903.06059;
        Xie et al. (NeurIPS 2023), arXiv:2302.03169, Sec. 3.
    """

    num_selected: int | None = None
    num_tokens: int | None = None
    temperature: float = 1.0
    min_length: int = 0
    proportions: Mapping[str, float] | None = None
    domain_shares: Mapping[str, float] | None = None
    assignment: Assignment = "in turn"
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        if (self.num_selected is None) == (self.num_tokens is None):
            raise ValueError(
                "exactly one of `num_selected` and `num_tokens` must be given. Got "
                f"{self.num_selected} and {self.num_tokens}."
            )
        check_at_least("num_selected or num_tokens", self.budget, 0)
        check_between("temperature", self.temperature, 0, 1e300)
        check_at_least("min_length", self.min_length, 0)
        check_one_of("assignment", self.assignment, ("in turn", "best"))
        for name in ("proportions", "domain_shares"):
            _check_shares(name, getattr(self, name))

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return "tokens" if self.num_selected is None else "rows"

    @property
    def budget(self) -> int:
        """How much of it is drawn."""
        return int(self.num_tokens if self.num_selected is None else self.num_selected)  # type: ignore[arg-type]


class Resampler:
    """Draws rows as they come; ready to be saved and to go on between any two calls.

    Args:
        draw: How much is drawn, and from where.
        targets: Names of the targets, in the order in which they draw.
    """

    name = "resampler"

    def __init__(self, draw: Draw, targets: Sequence[str] = ("",)) -> None:
        """Start with nothing."""
        self.draw, self.targets = draw, list(targets)
        proportions = draw.proportions or dict.fromkeys(self.targets, 1.0)
        if set(proportions) != set(self.targets):
            raise ValueError(
                f"`proportions` must be those of the targets {self.targets}. Got those of "
                f"{list(proportions)}."
            )
        domains = draw.domain_shares or {EVERY_DOMAIN: 1.0}
        self.budgets: dict[str, dict[str, int]] = {
            domain: split_budget(budget, {target: proportions[target] for target in self.targets})
            for domain, budget in split_budget(draw.budget, domains).items()
        }
        self._tops = {pair: self._new_top(*pair) for pair in self._pairs()}
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.sums = np.full((3, len(self.targets)), -np.inf)

    def add(self, result: Any) -> None:
        """Take the rows of a block, as `offer` does."""
        domains = result.batch.domains
        self.offer(result.batch.ids, result.log_weights, result.num_tokens, domains)

    def offer(
        self,
        ids: pa.Array,
        log_weights: Float[np.ndarray, "n T"],
        num_tokens: Int[np.ndarray, " n"],
        domains: pa.Array | None = None,
    ) -> None:
        """Take some rows.

        Args:
            ids: Row ids.
            log_weights: Logarithm of the weight for each target; minus infinity is a
                weight of zero, which is never drawn.
            num_tokens: Number of tokens of each row.
            domains: Where each row comes from.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
            ValueError: Shares of domains were given, and the data has no domains.
        """
        _check_weights(ids, log_weights)
        long = num_tokens >= self.draw.min_length
        self.counters["rows"] += len(ids)
        self.counters["short"] += int((~long).sum())
        self.counters["impossible"] += int((long & np.isneginf(log_weights).all(1)).sum())
        self.counters["numbered"] += len(ids) if pa.types.is_integer(ids.type) else 0
        eligible = np.where(long[:, None], log_weights, -np.inf)
        self._sum(eligible)
        if self.draw.domain_shares is not None and domains is None:
            raise ValueError(
                "the data must have domains for `domain_shares`. Name their column, as in "
                "Texts(data, TextColumns(domain='source'))."
            )
        for number, target in enumerate(self.targets):
            keys = self._keys(ids, eligible[:, number], target)
            for domain in self.budgets:
                own = keys
                if domain != EVERY_DOMAIN:
                    names = np.asarray(domains.to_pylist(), dtype=object)  # type: ignore[union-attr]
                    own = np.where(names == domain, keys, -np.inf)
                columns = {"num_tokens": num_tokens, "log_weight": log_weights[:, number]}
                self._tops[target, domain].offer(ids, own, columns)

    def merge(self, other: "Resampler") -> None:
        """Take the rows that another one with the same draw was offered."""
        self.counters = {name: self.counters[name] + other.counters[name] for name in COUNTERS}
        self.sums[:2] = np.logaddexp(self.sums[:2], other.sums[:2])
        self.sums[2] = np.maximum(self.sums[2], other.sums[2])
        for pair, top in self._tops.items():
            top.merge(other._tops[pair])

    def selection(self) -> Selection:
        """Return what was drawn, best key first within each target.

        Raises:
            DataError: Two of the rows have the same id.
        """
        chosen = self._in_turn() if self.draw.assignment == "in turn" else self._best()
        ids = [row.id for row in chosen]
        if len(set(ids)) < len(ids):
            repeated = sorted(row for row in set(ids) if ids.count(row) > 1)[:5]
            raise DataError(
                f"every row must have an id of its own. Drawn more than once: {repeated}. Remove "
                "the copies, or read without the column of ids."
            )
        whole = self.counters["numbered"] == self.counters["rows"]
        columns = {
            "log_weight": np.array([row.log_weight for row in chosen]),
            "key": np.array([row.key for row in chosen]),
            "num_tokens": np.array([row.num_tokens for row in chosen], dtype=np.int64),
        }
        if len(self.targets) > 1:
            columns["target"] = np.array([row.target for row in chosen], dtype=str)
        kept = np.array([int(row) for row in ids], np.int64) if whole else np.array(ids, dtype=str)
        return Selection(kept, np.ones(len(ids)), provenance=self.summary(), columns=columns)

    def summary(self) -> dict[str, Any]:
        """Return the settings, and what is known of all rows, as plain JSON values."""
        total, squares, largest = np.where(np.isneginf(self.sums), np.nan, self.sums)
        return {
            "draw": asdict(self.draw),
            "rows": self.counters["rows"],
            "too_short": self.counters["short"],
            "weight_zero": self.counters["impossible"],
            "effective_sample_size": _by_target(self.targets, np.exp(2 * total - squares)),
            "largest_weight_share": _by_target(self.targets, np.exp(largest - total)),
        }

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        return {
            "counters": torch.tensor([self.counters[name] for name in COUNTERS]),
            "sums": torch.from_numpy(self.sums.copy()),
            **{
                f"{number}/{name}": value
                for number, top in enumerate(self._tops.values())
                for name, value in top.state().items()
            },
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.counters = dict(zip(COUNTERS, state["counters"].tolist(), strict=True))
        self.sums = state["sums"].numpy().copy()
        for number, top in enumerate(self._tops.values()):
            mark = f"{number}/"
            top.load({k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)})

    def _pairs(self) -> list[tuple[str, str]]:
        """Return each target with each domain."""
        return [(target, domain) for target in self.targets for domain in self.budgets]

    def _new_top(self, target: str, domain: str) -> TopRows:
        """Return a list long enough that what others take first does not matter."""
        budgets = list(self.budgets[domain].values())
        before = self.targets.index(target) + 1 if self.draw.assignment == "in turn" else None
        budget = sum(budgets[:before])
        spare = len(self.targets) - 1 if self.draw.unit == "tokens" else 0
        own = self.budgets[domain][target]
        return TopRows("top", budget=budget if own else 0, unit=self.draw.unit, spare=spare)

    def _keys(
        self, ids: pa.Array, log_weights: Float[np.ndarray, " n"], target: str
    ) -> Float[np.ndarray, " n"]:
        """Return what rows are ranked by."""
        if self.draw.temperature == 0:
            return log_weights
        noise = gumbel(ids, seed=self.draw.seed, name=f"resampling/{target}")
        return log_weights / self.draw.temperature + noise

    def _sum(self, log_weights: Float[np.ndarray, "n T"]) -> None:
        """Add up weights and their squares, in logarithms."""
        if len(log_weights):
            parts = [log_weights, 2 * log_weights]
            for row, values in enumerate(parts):
                self.sums[row] = np.logaddexp(self.sums[row], np.logaddexp.reduce(values, axis=0))
            self.sums[2] = np.maximum(self.sums[2], log_weights.max(axis=0))

    def _in_turn(self) -> list["Drawn"]:
        """Let each target draw from what the ones before left."""
        taken: set[str] = set()
        chosen: list[Drawn] = []
        for target, domain in self._pairs():
            left = [row for row in self._rows(target, domain) if row.id not in taken]
            budget = self.budgets[domain][target]
            tokens = np.array([row.num_tokens for row in left])
            num = min(budget, len(left)) if self.draw.unit == "rows" else num_within(tokens, budget)
            taken |= {row.id for row in left[:num]}
            chosen += left[:num]
        return chosen

    def _best(self) -> list["Drawn"]:
        """Give each row to the target where its key is largest, until targets are full."""
        taken: set[str] = set()
        chosen: list[Drawn] = []
        for domain, budgets in self.budgets.items():
            left = dict(budgets)
            rows = [row for target in self.targets for row in self._rows(target, domain)]
            for row in sorted(rows, key=lambda row: (-row.key, row.id, row.target)):
                if row.id not in taken and left[row.target] > 0:
                    left[row.target] -= row.num_tokens if self.draw.unit == "tokens" else 1
                    taken.add(row.id)
                    chosen.append(row)
        return sorted(chosen, key=lambda row: self.targets.index(row.target))

    def _rows(self, target: str, domain: str) -> list["Drawn"]:
        """Return the candidates of a target in a domain, best first."""
        top = self._tops[target, domain]
        columns = [top.keys, *(top.columns.get(n, ()) for n in ("log_weight", "num_tokens"))]
        rows = zip(top.ids.to_pylist(), *(np.asarray(c).tolist() for c in columns), strict=True)
        return [Drawn(row_id, *numbers, target) for row_id, *numbers in rows]  # type: ignore[call-arg]


@dataclass(frozen=True)
class Drawn:
    """A row that may be drawn for a target."""

    id: str
    key: float
    log_weight: float
    num_tokens: int
    target: str


def resample(scores: Scores, draw: Draw) -> Selection:
    """Draw rows by log weights that are known, one column a target.

    Args:
        scores: Log weights, such as those of `FittedDSIR.log_weights`; a column
            ``num_tokens`` is the length of the rows.
        draw: How many rows, and how.

    Returns:
        The rows, best key first, with their keys and log weights.

    Raises:
        NonFiniteError: A weight is NaN or infinite. Minus infinity is a weight of zero.

    Example:
        >>> scores = Scores(np.arange(3), {"log_weight": np.array([0.0, 9.0, -np.inf])})
        >>> resample(scores, Draw(num_selected=3, seed=0)).ids
        array([1, 0])
    """
    names = [name for name in scores.names if name != "num_tokens"]
    weights = np.stack([scores.columns[name] for name in names], axis=1).astype(np.float64)
    lengths = scores.columns.get("num_tokens", np.ones(len(scores))).astype(np.int64)
    resampler = Resampler(draw, [name.rpartition("/")[2] for name in names])
    resampler.offer(pa.array(scores.ids.tolist()), weights, lengths)
    return resampler.selection()


def split_budget(budget: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return a whole part of a budget for each share, what is left going to the last.

    Example:
        >>> split_budget(10, {"a": 1, "b": 1, "c": 1})
        {'a': 3, 'b': 3, 'c': 4}
    """
    total = sum(shares.values())
    parts = {name: int(budget * share / total) for name, share in shares.items()}
    parts[list(parts)[-1]] += budget - sum(parts.values())
    return parts


def _by_target(targets: Sequence[str], values: np.ndarray) -> Any:
    """Return a number, or one for each target; none where nothing could be drawn."""
    numbers = [float(value) if np.isfinite(value) else None for value in values]
    return numbers[0] if len(numbers) == 1 else dict(zip(targets, numbers, strict=True))


def _check_shares(name: str, shares: Mapping[str, float] | None) -> None:
    """Refuse shares that are negative, or all zero."""
    if shares is None:
        return
    good = all(0 <= share < np.inf for share in shares.values())
    if not good or sum(shares.values()) <= 0:
        raise ValueError(f"`{name}` must be at least 0, and not all 0. Got {dict(shares)}.")


def _check_weights(ids: pa.Array, log_weights: Float[np.ndarray, "n T"]) -> None:
    """Refuse NaN and infinity."""
    bad = np.flatnonzero((np.isnan(log_weights) | np.isposinf(log_weights)).any(1))
    if len(bad):
        raise NonFiniteError(
            f"every log weight must be a number or minus infinity. Those of the ids "
            f"{ids.take(pa.array(bad[:10])).to_pylist()} are not."
        )
