"""Checkpoints of a pass: the state of its accumulators after each shard, on disk.

A killed pass that starts again goes on after the last shard that was saved, and ends with
the same bytes as one that was not killed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from projections.base import Stateful
from projections.errors import StoreMismatchError
from projections.files import read_json, replacing, write_json
from projections.fingerprint import differences

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
        self._finished = 0
        if (self.folder / PROGRESS).exists():
            progress = read_json(self.folder / PROGRESS, "a checkpoint")
            if different := differences(self.description, progress["description"]):
                raise StoreMismatchError(
                    f"{self.folder} must be a new folder or a checkpoint of the same pass. It "
                    f"differs in: {'; '.join(different)}. Choose another folder or remove this one."
                )
            self._finished = progress["finished"]

    @property
    def num_finished(self) -> int:
        """Number of shards that the saved state covers."""
        return self._finished

    def restore(self, accumulators: Sequence[Stateful]) -> None:
        """Load the saved state, if there is one."""
        if self._finished:
            for accumulator in accumulators:
                accumulator.load(load_file(self._file(accumulator, self._finished)))

    def save(self, shard: int, accumulators: Sequence[Stateful]) -> None:
        """Save the state, then say so, then remove the one before."""
        before, self._finished = self._finished, shard + 1
        for accumulator in accumulators:
            state = {name: value.cpu().contiguous() for name, value in accumulator.state().items()}
            with replacing(self._file(accumulator, self._finished)) as file:
                file.write(save(state))
        progress = {"description": self.description, "finished": self._finished}
        write_json(self.folder / PROGRESS, progress)
        for accumulator in accumulators:
            self._file(accumulator, before).unlink(missing_ok=True)

    def _file(self, accumulator: Stateful, finished: int) -> Path:
        """Return where a state is kept."""
        return self.folder / f"{accumulator.name}-{finished:06d}.safetensors"
