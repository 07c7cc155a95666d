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
TOLERANCES = {"checkpointed": 1e-10, "llama": 1e-4, "bfloat16": 1e-4}


def check_same(found: Any, rank: int, name: str) -> None:
    for key, expected in found_by(name, spread=False).items():
        result = np.load(found / f"rank{rank}.npz")[f"{name}: {key}"]
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(result, expected, err_msg=key)
        else:
            atol = TOLERANCES[name] * float(np.abs(expected).max())
            np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=key)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    ended = torchrun(2, PROGRAM, folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("name", list(CASES))
def test_a_fully_sharded_model_gives_what_it_gives_in_one_piece(of_two: Path, name: str) -> None:
    assert int(np.load(of_two / "rank0.npz")["checkpointed: partitions"]) > 1
    for rank in (0, 1):
        check_same(of_two, rank, name)


@pytest.mark.slow
def test_ranks_without_rows_run_a_sharded_model_along(tmp_path: Path) -> None:
    ended = torchrun(3, PROGRAM, tmp_path, "checkpointed")
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path, 2, "checkpointed")


def test_passes_of_one_rank_and_solvers_refuse_a_sharded_model(of_two: Path) -> None:
    said = (of_two / "refusals").read_text()
    assert "a model that is fully sharded must be run by all ranks together" in said
    assert "solvers must have the whole model on each rank" in said
    assert not is_sharded(make_task("checkpointed", spread=False).model)
