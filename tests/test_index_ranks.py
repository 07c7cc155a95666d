"""Ranks build and search an index on the disk as one process does, whoever dies on the way."""

from pathlib import Path

import numpy as np
import pytest
from index_ranks import NUM_ROWS, QUERIES, everything, write
from launching import ROOT, start_by_hand, torchrun

from projections import GradientStore, SearchIndex

pytest.importorskip("faiss")
PROGRAM = ROOT / "tests" / "index_ranks.py"


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    write(folder / "store")
    return everything(folder)


def check_same(folder: Path, size: int, of_one: dict[str, np.ndarray]) -> None:
    for rank in range(size):
        found = np.load(folder / f"rank{rank}.npz")
        assert set(found) == set(of_one)
        for name, values in of_one.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_three_ranks_find_what_one_finds_after_one_of_them_died(tmp_path: Path, of_one) -> None:
    write(tmp_path / "store")
    died = start_by_hand(3, PROGRAM, tmp_path, 4)  # of the second round, and of rank 1
    assert [process.returncode for process in died] == [1, -9, 1]
    for rank in (0, 2):
        assert "LostRankError: rank 1 of 3 has died" in died[rank].stderr
    finished = (tmp_path / "i" / "journal.jsonl").read_text().splitlines()
    assert len(finished) == 3
    ended = torchrun(2, PROGRAM, tmp_path)
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path, 2, of_one)


@pytest.mark.slow
def test_three_ranks_find_what_one_finds_to_the_bit(tmp_path: Path, of_one) -> None:
    write(tmp_path / "store")
    ended = torchrun(3, PROGRAM, tmp_path)
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path, 3, of_one)


def test_with_all_lists_one_process_finds_what_exact_search_finds(tmp_path: Path) -> None:
    write(tmp_path / "store")
    store = GradientStore.open(tmp_path / "store")
    exact = SearchIndex(store).search(QUERIES, 9).ids
    np.testing.assert_array_equal(everything(tmp_path, "IVF4,Flat")["all lists"], exact)
    assert len(store) == NUM_ROWS - 2
