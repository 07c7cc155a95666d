"""Several ranks find what one finds, whoever dies on the way.

Ranks are started as launchers start them, several checks to a launch since a launch takes
seconds.
"""

from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, start_by_hand, torchrun
from pass_ranks import build, everything, make_task

PROGRAM = ROOT / "tests" / "pass_ranks.py"
EXACT = ("ids", "stored ids", "top", "bottom", "exact top", "empirical top")
TOLERANCE = 1e-6  # of sums in another order, some of them kept as float32


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("one")
    build(make_task(), folder)
    return folder, everything(folder)


def check_same(found: Path, size: int, of_one: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = of_one
    for name in ("s", "store"):
        assert files(found / name) == files(folder / name)
    for rank in range(size):
        results = np.load(found / f"rank{rank}.npz")
        assert set(results) == set(expected)
        for name, values in expected.items():
            if name in EXACT or name.startswith("column"):
                np.testing.assert_array_equal(results[name], values, err_msg=name)
            else:
                np.testing.assert_allclose(results[name], values, rtol=TOLERANCE, err_msg=name)


ROW = 4 * 4 + 1  # in the fifth shard: of the second round, and of rank 1 of three or of two


def test_a_rank_that_dies_in_a_fit_is_named_and_two_ranks_go_on_from_three(
    tmp_path: Path, of_one
) -> None:
    died = start_by_hand(3, PROGRAM, tmp_path, ROW, 1)
    assert [process.returncode for process in died] == [1, -9, 1]
    for rank in (0, 2):
        assert "LostRankError: rank 1 of 3 has died" in died[rank].stderr
        assert "Run the same again to go on" in died[rank].stderr
    shares = (tmp_path / "fit" / "covariances").glob("*.safetensors")
    assert {file.stem[-4:] for file in shares} == {"0of3", "1of3", "2of3"}
    ended = torchrun(2, PROGRAM, tmp_path)
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path, 2, of_one)


@pytest.mark.slow
def test_three_ranks_of_torchrun_go_on_with_a_store_where_one_of_them_died(
    tmp_path: Path, of_one
) -> None:
    died = torchrun(3, PROGRAM, tmp_path, ROW, 3)
    assert died.returncode == 1
    assert "SIGKILL" in died.stderr and "rank      : 1 (local_rank: 1)" in died.stderr
    assert (tmp_path / "s" / "shard-000002").exists()
    ended = torchrun(3, PROGRAM, tmp_path)
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path, 3, of_one)
