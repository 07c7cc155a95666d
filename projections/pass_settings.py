"""How a pass reads its data: batches packed by length, shards, and which components."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from projections.checks import check_at_least, check_one_of
from projections.heads import HeadSplit


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a pass reads its data; no result depends on it beyond the order of sums.

    Args:
        batch_size: Most examples in a batch.
        max_tokens: Most positions in a batch, padding included. Default: no limit.
        shard_size: Rows read, and kept safe, at a time.
        layers: Patterns of the components to look at, as in `find_components`.
        kinds: Kinds of the components to look at, likewise.
        heads: Layers that are taken apart by attention head, as from `find_heads`.
        autocast: ``"bfloat16"`` to run the model under autocast. Gradients are then in the
            precision of the parameters, and as exact as the model's activations.
    """

    batch_size: int = 32
    max_tokens: int | None = None
    shard_size: int = 1024
    layers: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    heads: tuple[HeadSplit, ...] = ()
    autocast: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("shard_size", self.shard_size, 1)
        if self.autocast is not None:
            check_one_of("autocast", self.autocast, ("bfloat16",))
        if self.max_tokens is not None:
            check_at_least("max_tokens", self.max_tokens, 1)

    def with_batching(self, other: "PassSettings | None") -> "PassSettings":
        """Return the components and the precision of these settings, read as others say.

        Args:
            other: Whose batches and shards to take; these settings' own if None.
        """
        return replace(
            other or self,
            layers=self.layers,
            kinds=self.kinds,
            heads=self.heads,
            autocast=self.autocast,
        )

    def describe_gradients(self) -> dict[str, Any]:
        """Return as JSON values what changes gradients beside the choice of components."""
        heads = [asdict(split) | {"slots": list(split.slots)} for split in self.heads]
        return ({"heads": heads} if heads else {}) | (
            {"autocast": self.autocast} if self.autocast else {}
        )


def pack(sizes: Sequence[int], settings: PassSettings) -> Iterator[list[int]]:
    """Yield groups of positions of similar size, the longest first.

    Args:
        sizes: Length of each example.
        settings: Limits of a batch. A single example above ``max_tokens`` is a batch.

    Example:
        >>> list(pack([1, 9, 2, 8], PassSettings(max_tokens=18)))
        [[1, 3], [2, 0]]
    """
    group: list[int] = []
    for position in sorted(range(len(sizes)), key=lambda p: (-sizes[p], p)):
        longest = sizes[group[0]] if group else sizes[position]
        full = len(group) == settings.batch_size
        if settings.max_tokens is not None:
            full = full or (len(group) + 1) * longest > settings.max_tokens
        if group and full:
            yield group
            group = []
        group.append(position)
    if group:
        yield group
