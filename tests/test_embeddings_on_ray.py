"""Vectors that Ray's workers encode are those of one process, and so is what follows."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_cluster import MARKS, on_ray, small_ray

from projections import ON_RAY, ColumnEncoder, DataError, NonFiniteError, OnRay, TfidfSVD, embed
from selection import GIO, SemanticDedup

pytestmark = MARKS
RANDOM = np.random.default_rng(0)
WORDS = np.array([f"w{number}" for number in range(40)])
ROWS: list[dict[str, Any]] = [
    {
        "id": f"row-{row}",
        "text": " ".join(RANDOM.choice(WORDS, 12)),
        "vector": RANDOM.normal(size=6).tolist(),
    }
    for row in range(300)
]
TFIDF = TfidfSVD(num_dims=8, seed=0).fit([row["text"] for row in ROWS])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    with small_ray():
        yield


def given(rows: list[dict[str, Any]] = ROWS, num_blocks: int = 5) -> Any:
    return on_ray(rows, num_blocks)


@pytest.mark.parametrize(
    "encoder", [TFIDF, ColumnEncoder(column="vector")], ids=["words", "column"]
)
def test_vectors_are_those_of_one_process_to_the_bit(encoder: Any) -> None:
    expected = embed(ROWS, encoder)
    for num_blocks, batch_size in ((5, 64), (1, 7)):
        found = embed(given(num_blocks=num_blocks), encoder, batch_size=batch_size)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.rows.tobytes() == expected.rows.tobytes()
    assert found.provenance["encoder"] == expected.provenance["encoder"]


def test_what_gio_and_deduplication_choose_is_the_same_to_the_bit() -> None:
    alone, found = embed(ROWS, TFIDF), embed(given(), TFIDF)
    target = alone.take(np.arange(20))
    gio = GIO(num_centroids=30, seed=0)
    expected, path = gio.fit(alone, target), gio.fit(found, target)
    assert path.picks == expected.picks
    assert path.select().ids.tolist() == expected.select().ids.tolist()
    dedup = SemanticDedup(threshold=0.7, num_clusters=5, seed=0)
    kept, whole = dedup.select(found), dedup.select(alone)
    assert kept.ids.tolist() == whole.ids.tolist()
    assert kept.rejected == whole.rejected and len(whole.rejected) > 0


def test_parts_go_to_the_cluster_in_windows_and_come_back_in_order() -> None:
    found = embed(given(), TFIDF)
    for one in (found, found.by_id(), found.normalized(), found.take(np.arange(3))):
        assert one.workers == ON_RAY
    assert list(OnRay(window_bytes=40).map(abs, range(-7, 0))) == [7, 6, 5, 4, 3, 2, 1]
    assert list(OnRay().map(abs, [])) == []
    with pytest.raises(TypeError, match="bad operand"):
        list(OnRay().map(abs, ["text"]))


def test_a_worker_that_dies_loses_no_vector(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def deadly(rows: list[Any]) -> np.ndarray:
        if any(row["id"] == "row-150" for row in rows) and not died.exists():
            died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([row["vector"] for row in rows])

    found = embed(given(), deadly)
    assert int(died.read_text()) != os.getpid()
    assert found.ids.tolist() == [row["id"] for row in ROWS]
    assert found.rows.tobytes() == embed(ROWS, ColumnEncoder(column="vector")).rows.tobytes()


def test_what_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    encoder = ColumnEncoder(column="vector")
    with pytest.raises(ValueError, match="`path` must be left out for a Ray dataset"):
        embed(given(), encoder, path=tmp_path / "e")
    with pytest.raises(DataError, match="must have a column 'id' of ids"):
        embed(given([{"vector": [1.0]}], 1), encoder)
    with pytest.raises(DataError, match="must hold a list of numbers of the same length"):
        embed(given([{"id": 1, "vector": None}], 1), encoder)
    with pytest.raises(DataError, match="must hold each id once"):
        embed(given([ROWS[0], ROWS[0]], 2), encoder)
    with pytest.raises(NonFiniteError, match=r"Those of the ids \[7\]"):
        embed(given([{"id": 7, "vector": [float("nan")]}], 1), encoder)
    with pytest.raises(ValueError, match=r"data.*at least one"):
        embed(given().limit(0), encoder)
