"""Models that are spread over ranks give what they give in one piece."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import ROOT, torchrun
from sharded_ranks import CASES, found_by, make_task

from projections import is_sharded

PROGRAM = ROOT / "tests" / "sharded_ranks.py"
# Rows of a batch are computed alike; covariances are summed in another order, and a fit of
# single precision passes that on to eigenvectors.
TOLERANCES = {"checkpointed": 1e-10, "llama": 1e-4, "bfloat16": 1e-4, "mixed precision": 0.03}


def check_same(found: Any, rank: int, name: str) -> None:
    for key, expected in found_by(name, spread=False).items():
        result = np.load(found / f"rank{rank}.npz")[f"{name}: {key}"]
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(result, expected, err_msg=key)
        else:
            atol = TOLERANCES[name] * float(np.abs(expected).max())
            np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=key)


def launch(size: int, folder: Path, *names: str) -> Path:
    ended = torchrun(size, PROGRAM, folder, *names)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_a_fully_sharded_model_gives_what_it_gives_in_one_piece_in_partitions_of_a_plan(
    tmp_path: Path,
) -> None:
    launch(2, tmp_path, "checkpointed")
    partitions = int(np.load(tmp_path / "rank0.npz")["checkpointed: partitions"])
    assert partitions > 1
    kept = list((tmp_path / "fit checkpointed").glob("partition-*/fitted.safetensors"))
    assert len(kept) == partitions  # which all ranks read, where they have no more than one
    for rank in (0, 1):
        check_same(tmp_path, rank, "checkpointed")
    said = (tmp_path / "refusals").read_text()
    assert "a model that is fully sharded must be run by all ranks together" in said
    assert "solvers must have the whole model on each rank" in said
    assert not is_sharded(make_task("checkpointed", spread=False).model)


@pytest.mark.slow
def test_so_do_tied_weights_bfloat16_and_mixed_precision(tmp_path: Path) -> None:
    names = [name for name in CASES if name != "checkpointed"]
    launch(2, tmp_path, *names)
    for name in names:
        check_same(tmp_path, 1, name)


@pytest.mark.slow
def test_ranks_without_rows_run_a_sharded_model_along(tmp_path: Path) -> None:
    launch(3, tmp_path, "checkpointed")
    check_same(tmp_path, 2, "checkpointed")
