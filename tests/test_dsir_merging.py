"""What workers add up on their own merges to what one walk finds."""

import numpy as np
import pyarrow as pa

from projections import Texts
from selection import HashedNgrams
from selection.dsir.passes import CountRows, LevelCounts
from selection.dsir.top_rows import TopRows, Unit

RANDOM = np.random.default_rng(0)
WORDS = np.array([f"w{number}" for number in range(40)])
RAW = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 30))) for _ in range(600)]


def top(budget: int, unit: Unit) -> TopRows:
    return TopRows("top", budget=budget, unit=unit)


def test_lists_of_top_rows_merge_to_that_of_all_rows() -> None:
    random = np.random.default_rng(3)
    cases: list[tuple[Unit, int]] = [("rows", 20), ("tokens", 300)]
    for unit, budget in cases:
        keys = random.integers(0, 50, 200).astype(float)  # with ties
        tokens = random.integers(1, 40, 200).astype(float)
        ids = pa.array([f"r{number}" for number in range(200)])
        whole = top(budget, unit)
        whole.offer(ids, keys, {"num_tokens": tokens})
        merged = top(budget, unit)
        for rows in np.array_split(random.permutation(200), 9):
            part = top(budget, unit)
            part.offer(ids.take(pa.array(rows)), keys[rows], {"num_tokens": tokens[rows]})
            merged.merge(part)
        assert merged.ids.to_pylist() == whole.ids.to_pylist()
        np.testing.assert_array_equal(merged.keys, whole.keys)
        np.testing.assert_array_equal(merged.columns["num_tokens"], whole.columns["num_tokens"])


def test_counts_merge_to_those_of_one_walk() -> None:
    work = CountRows(ngrams=HashedNgrams(num_buckets=500), seed=0)
    whole, merged = (LevelCounts("counts", 500, 900) for _ in range(2))
    for start in range(0, len(RAW), 100):
        rows = [{"id": n, "text": RAW[n]} for n in range(start, start + 100)]
        block = next(iter(Texts(rows).blocks()))
        whole.add(work((block, whole.lowest)))
        part = LevelCounts("counts", 500, 900)
        part.add(work((block, 0)))
        merged.merge(part)
    assert merged.lowest == whole.lowest > 0
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.num_rows == whole.num_rows
