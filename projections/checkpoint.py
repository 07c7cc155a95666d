"""Checkpoints of a pass: the state of its accumulators after each shard, on disk.

A killed pass that starts again goes on after the last shard that was saved, and ends with
the same bytes as one that was not killed. Several ranks save a share each, beside each
other in one folder; as many ranks as like go on from them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from projections.base import Accumulator, Stateful
from projections.errors import StoreMismatchError
from projections.files import read_json, replacing, write_json
from projections.fingerprint import differences
from projections.ranks import Ranks

PROGRESS = "progress.json"


class FolderCheckpoint:
    """A folder with the state after the last finished shard.

    Args:
        folder: The folder, made when the first shard is saved.
        description: What the pass is about, as plain JSON values; a folder with another
            description is refused.

    Raises:
        StoreMismatchError: The folder holds another pass.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any]) -> None:
        """Look at what is there."""
        self.folder = Path(folder)
        self.description = dict(description)
        self._finished, self._shares = 0, 1
        if (self.folder / PROGRESS).exists():
            progress = read_json(self.folder / PROGRESS, "a checkpoint")
            if different := differences(self.description, progress["description"]):
                raise StoreMismatchError(
                    f"{self.folder} must be a new folder or a checkpoint of the same pass. It "
                    f"differs in: {'; '.join(different)}. Choose another folder or remove this one."
                )
            self._finished, self._shares = progress["finished"], progress.get("shares", 1)

    @property
    def num_finished(self) -> int:
        """Number of shards that the saved state covers."""
        return self._finished

    def restore(self, accumulators: Sequence[Stateful]) -> None:
        """Load the saved state, if there is one.

        Raises:
            TypeError: Several ranks saved it, and what they saved does not merge.
        """
        for accumulator in accumulators:
            self._load(accumulator, range(self._shares))

    def restore_share(self, accumulators: Sequence[Stateful], ranks: Ranks) -> None:
        """Load what falls to one rank of the shares that were saved, if there are any."""
        for accumulator in accumulators:
            self._load(accumulator, range(ranks.rank, self._shares, ranks.size))

    def restore_all(self, accumulators: Sequence[Stateful]) -> None:
        """Load the shares of all ranks, one after the other."""
        self.restore(accumulators)

    def save(self, shard: int, accumulators: Sequence[Stateful]) -> None:
        """Save the state, then say so, then remove the one before."""
        self.save_share(shard, accumulators, Ranks())

    def save_share(self, shard: int, accumulators: Sequence[Stateful], ranks: Ranks) -> None:
        """Save this rank's share; when all have, the first rank says so and removes older ones.

        Args:
            shard: The last shard that the shares of all ranks cover.
            accumulators: What to save.
            ranks: The ranks, which call this together.
        """
        before = [self._file(each, share) for each in accumulators for share in range(self._shares)]
        self._finished, self._shares = shard + 1, ranks.size
        for accumulator in accumulators:
            state = {name: value.cpu().contiguous() for name, value in accumulator.state().items()}
            with replacing(self._file(accumulator, ranks.rank)) as file:
                file.write(save(state))
        ranks.barrier("shares of a checkpoint")
        if ranks.is_first:
            progress = {"description": self.description, "finished": self._finished}
            if ranks.size > 1:
                progress["shares"] = ranks.size
            write_json(self.folder / PROGRESS, progress)
            for file in before:
                file.unlink(missing_ok=True)

    def save_all(self, accumulators: Sequence[Stateful], ranks: Ranks) -> None:
        """Replace the shares by what they were merged to, which has these bits from now on.

        Args:
            accumulators: What was merged, the same on each rank.
            ranks: The ranks, which call this together.
        """
        if self._shares > 1:
            if ranks.is_first:
                self.save(self._finished - 1, accumulators)
            self._shares = 1

    def _load(self, accumulator: Stateful, shares: Sequence[int]) -> None:
        """Load some shares of one state."""
        if not self._finished or not shares:
            return
        accumulator.load(load_file(self._file(accumulator, shares[0])))
        for share in shares[1:]:
            if not isinstance(accumulator, Accumulator):
                raise TypeError(
                    f"what {self._shares} ranks saved must be merged, and {accumulator.name} has "
                    f"no `merge`. Go on with {self._shares} ranks."
                )
            accumulator.merge(load_file(self._file(accumulator, share)))

    def _file(self, accumulator: Stateful, share: int) -> Path:
        """Return where a share of a state is kept."""
        of_rank = f"-{share}of{self._shares}" if self._shares > 1 else ""
        return self.folder / f"{accumulator.name}-{self._finished:06d}{of_rank}.safetensors"
