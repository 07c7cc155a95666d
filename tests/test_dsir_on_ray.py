"""On Ray the draw is that of one process, to the bit, also when a worker dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_cluster import MARKS, on_ray, small_ray

from projections import DataError, TextColumns, Texts
from selection import DSIR, HashedNgrams, Selection, report_draw, write_chosen

pytestmark = MARKS
RANDOM = np.random.default_rng(0)
WORDS = np.array([f"w{number}" for number in range(40)])
RAW = [
    {
        "id": f"row-{row}",
        "text": " ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 30))),
        "source": "ab"[row % 2],
    }
    for row in range(600)
]
TARGETS = {"one": ["w1 w2 w3 w4 w1"] * 5, "two": ["w9 w8 w7 w9 w9 w9"] * 5}
SMALL = HashedNgrams(num_buckets=500)


def dsir(**more: Any) -> DSIR:
    settings: dict[str, Any] = {"ngrams": SMALL, "min_length": 5, "smoothing": 0.1, "seed": 0}
    return DSIR(**(settings | more))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    with small_ray():
        yield


def given(rows: list[dict[str, Any]] = RAW, num_blocks: int = 7) -> Any:
    return on_ray(rows, num_blocks)


def check_same(found: Selection, expected: Selection) -> None:
    """Ids, order, keys, weights and facts, but for the rounding of a sum."""
    assert found.ids.tolist() == expected.ids.tolist()
    for name, values in expected.columns.items():
        assert np.asarray(found.columns[name]).tobytes() == np.asarray(values).tobytes(), name
    np.testing.assert_array_equal(found.weights, expected.weights)
    for name in ("rows", "too_short", "weight_zero", "draw"):
        assert found.provenance[name] == expected.provenance[name]
    near = pytest.approx(expected.provenance["effective_sample_size"], rel=1e-12)
    assert found.provenance["effective_sample_size"] == near


@pytest.mark.parametrize(
    "more",
    [
        {"num_selected": 50},
        {"num_tokens": 400, "assignment": "best"},
        {"num_selected": 60, "temperature": 0},
        {"num_selected": 40, "domain_shares": {"a": 3, "b": 1}},
    ],
    ids=["rows", "tokens", "largest", "domains"],
)
def test_fit_and_draw_are_those_of_one_process_to_the_bit(more: dict[str, Any]) -> None:
    columns = TextColumns(domain="source")
    alone = dsir().fit(RAW, TARGETS)
    fitted = dsir().fit(given(), TARGETS)
    assert fitted.fingerprint == alone.fingerprint
    assert fitted.provenance == alone.provenance
    found = fitted.select(Texts(given(), columns), **more)
    check_same(found, alone.select(Texts(RAW, columns), **more))


def test_blocks_and_their_order_change_nothing() -> None:
    fitted = dsir().fit(RAW, TARGETS)
    expected = fitted.select(RAW, num_selected=30)
    shuffled = [RAW[row] for row in np.random.default_rng(1).permutation(len(RAW))]
    for rows, num_blocks in ((RAW, 1), (shuffled, 23)):
        check_same(fitted.select(given(rows, num_blocks), num_selected=30), expected)


def test_a_sample_of_the_raw_data_is_the_same_rows() -> None:
    for most in (300, 2000):
        found = dsir(num_ngrams_to_fit=most).fit(given(), TARGETS)
        assert found.fingerprint == dsir(num_ngrams_to_fit=most).fit(RAW, TARGETS).fingerprint
        assert found.provenance["raw_share"] < 1


def test_targets_may_be_on_ray_too_and_rows_be_cut_into_pieces() -> None:
    target = [{"id": number, "text": text} for number, text in enumerate(TARGETS["one"])]
    alone = dsir(chunk_tokens=10).fit(RAW, target)
    fitted = dsir(chunk_tokens=10).fit(given(), given(target, 2))
    assert fitted.fingerprint == alone.fingerprint
    check_same(fitted.select(given(), num_selected=20), alone.select(RAW, num_selected=20))


def test_weights_and_reasons_come_in_the_order_of_the_data() -> None:
    fitted = dsir().fit(RAW, TARGETS)
    expected, found = fitted.log_weights(RAW), fitted.log_weights(given())
    assert found.ids.tolist() == expected.ids.tolist()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)
    chosen = fitted.select(RAW, num_selected=10)
    assert list(fitted.rejections(given(), chosen)) == list(fitted.rejections(RAW, chosen))


def test_the_report_and_the_written_rows_are_those_of_one_process(tmp_path: Path) -> None:
    fitted = dsir().fit(RAW, TARGETS["one"])
    chosen = fitted.select(RAW, num_selected=30)
    expected = report_draw(fitted, RAW, chosen)
    assert report_draw(fitted, given(), chosen) == expected
    write_chosen(chosen, RAW, tmp_path / "alone.jsonl")
    write_chosen(chosen, given(), tmp_path / "ray.jsonl")
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def words(text: str) -> list[str]:
        return text.split()

    def deadly(text: str) -> list[str]:
        if text == RAW[300]["text"] and not died.exists():
            died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return text.split()

    plain, killer = (HashedNgrams(num_buckets=500, tokenizer=one) for one in (words, deadly))
    alone = dsir(ngrams=plain).fit(RAW, TARGETS)
    fitted = dsir(ngrams=killer).fit(given(), TARGETS)
    assert int(died.read_text()) != os.getpid()
    np.testing.assert_array_equal(fitted.raw_counts, alone.raw_counts)
    died.unlink()
    found = fitted.select(given(), num_selected=40)
    assert died.exists()
    check_same(found, alone.select(RAW, num_selected=40))


def test_what_ray_decides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`num_workers` must be left out .* Got 3"):
        dsir().fit(given(), TARGETS, num_workers=3)
    with pytest.raises(ValueError, match="`path` must be left out for a Ray dataset"):
        dsir().fit(given(), TARGETS, path=tmp_path)
    with pytest.raises(ValueError, match="`path` must be left out"):
        dsir().fit(RAW, TARGETS).select(given(), num_selected=3, path=tmp_path / "draw")


def test_errors_of_a_block_are_those_of_one_process() -> None:
    fitted = dsir().fit(RAW, TARGETS)
    nameless = given([{"url": "x", "text": "a"}], 1)
    with pytest.raises(DataError, match=r"must have a column 'id' of ids.*\['text', 'url'\]"):
        fitted.select(nameless, num_selected=1)
    columns = TextColumns(id="url")
    assert len(fitted.log_weights(Texts(nameless, columns))) == 1
    broken = given([{"id": "x", "text": "a"}, {"id": "y", "text": None}], 1)
    with pytest.raises(DataError, match="row 1: every row must have a text in 'text'") as caught:
        fitted.select(broken, num_selected=1)
    assert "On a worker of Ray" in caught.value.__notes__[0]
    twice = given([RAW[7], RAW[7]], 2)
    with pytest.raises(DataError, match="every row must have an id of its own"):
        fitted.select(twice, num_selected=2)


def test_settings_of_ray_are_as_they_were_afterwards() -> None:
    data = given()
    before = data.context.execution_options.preserve_order, data.context.enable_progress_bars
    dsir().fit(data, TARGETS)
    after = data.context.execution_options.preserve_order, data.context.enable_progress_bars
    assert after == before
