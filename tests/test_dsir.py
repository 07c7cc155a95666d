"""DSIR gives log density ratios and draws by them, whatever the files, the order, the workers."""

import gzip
import json
import re
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from projections import DataError, NonFiniteError, Scores, TextColumns, Texts
from selection import DSIR, Draw, FittedDSIR, HashedNgrams, Selection, resample
from selection.dsir.estimator import SMALLEST
from selection.dsir.resampling import Resampler, split_budget
from selection.dsir.top_rows import TopRows

VOCABULARY = [f"w{number}" for number in range(30)]
RANDOM = np.random.default_rng(0)
TARGET_P = RANDOM.dirichlet(np.ones(30))
RAW_P = RANDOM.dirichlet(np.ones(30))


def documents(num: int, probabilities: np.ndarray, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "id": f"{seed}-{row}",
            "text": " ".join(random.choice(VOCABULARY, random.integers(1, 40), p=probabilities)),
            "domain": "abc"[row % 3],
        }
        for row in range(num)
    ]


RAW = documents(400, RAW_P, 1)
TARGET = documents(50, TARGET_P, 2)
SMALL = HashedNgrams(num_buckets=500)


def fit(**more: Any) -> FittedDSIR:
    settings: dict[str, Any] = {"ngrams": SMALL, "min_length": 5, "smoothing": 0.1, "seed": 0}
    return DSIR(**(settings | more)).fit(RAW, TARGET)


FITTED = fit()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def oracle_weights(raw: list[str], target: list[str], num_buckets: int) -> np.ndarray:
    """Return log weights by dense counts of the standard library's hash: slow and plain."""
    import hashlib

    def counts(text: str) -> np.ndarray:
        words = re.findall(r"\w+|[^\w\s]+", text.lower())
        ngrams = words + [f"{one} {two}" for one, two in pairwise(words)]
        hashed = [int(hashlib.sha256(n.encode()).hexdigest(), 16) % num_buckets for n in ngrams]
        return np.bincount(hashed, minlength=num_buckets)

    features = np.array([counts(text) for text in raw])
    p, q = np.array([counts(text) for text in target]).sum(0), features.sum(0)
    return features @ (np.log(p / p.sum() + SMALLEST) - np.log(q / q.sum() + SMALLEST))


# Weights.


def test_weights_are_those_of_the_reference() -> None:
    raw, target = [row["text"] for row in RAW], [row["text"] for row in TARGET]
    ngrams = HashedNgrams(num_buckets=500, hashing="sha256")
    found = DSIR(ngrams=ngrams, seed=0).fit(raw, target).log_weights(raw)["log_weight"].values
    np.testing.assert_allclose(found, oracle_weights(raw, target, 500), atol=1e-9)


def test_weights_are_log_density_ratios_of_two_multinomials() -> None:
    ngrams = HashedNgrams(order=1, num_buckets=2**20)
    dsir = DSIR(ngrams=ngrams, min_length=0, seed=0)
    fitted = dsir.fit(documents(20_000, RAW_P, 3), documents(20_000, TARGET_P, 4))
    found = fitted.log_weights(VOCABULARY)["log_weight"].values
    expected = np.log(TARGET_P / RAW_P)
    errors = np.sqrt((1 / TARGET_P + 1 / RAW_P) / 4e5)  # of the logarithm of a count, both sides
    assert (np.abs(found - expected) < 5 * errors + 1e-5 / np.minimum(RAW_P, TARGET_P)).all()
    text = fitted.log_weights(["w1 w2 w2"])["log_weight"].values[0]
    assert text == pytest.approx(found[1] + 2 * found[2])


def test_fast_and_sha256_buckets_rank_alike() -> None:
    slow = fit(ngrams=HashedNgrams(hashing="sha256")).log_weights(RAW)["log_weight"].values
    fast = fit(ngrams=HashedNgrams()).log_weights(RAW)["log_weight"].values
    assert np.corrcoef(slow.argsort().argsort(), fast.argsort().argsort())[0, 1] > 0.98


def test_smoothing_is_a_pseudo_count_of_the_target() -> None:
    fitted = fit(smoothing=2.0)
    expected = (fitted.target_counts[0] + 2) / (fitted.target_counts.sum() + 2 * 500)
    np.testing.assert_allclose(fitted.target_probabilities[0], expected)
    assert fitted.target_probabilities.sum() == pytest.approx(1)
    assert fitted.raw_probabilities.sum() == pytest.approx(1)


def test_a_mean_weight_is_the_sum_over_the_number_of_ngrams() -> None:
    total, mean = FITTED.log_weights(RAW), fit(length="mean").log_weights(RAW)
    num = 2 * total.columns["num_tokens"] - 1
    np.testing.assert_allclose(
        mean["log_weight"].values, total["log_weight"].values / num, rtol=1e-12
    )


def test_pieces_are_weighed_on_their_own() -> None:
    fitted = fit(chunk_tokens=10, min_length=10)
    scores = fitted.log_weights(RAW)
    row = next(row for row in RAW if len(row["text"].split()) > 20)
    text = row["text"].split()
    first = fit(min_length=0).log_weights([" ".join(text[:10])])
    where = scores.ids.tolist().index(f"{row['id']}:0")
    assert scores.ids[where : where + 3].tolist() == [f"{row['id']}:{n}" for n in range(3)]
    assert scores.columns["num_tokens"].max() == 10
    assert first.columns["log_weight"].shape == (1,)
    chosen = fitted.select(RAW, num_selected=10)
    assert set(chosen.columns["num_tokens"].tolist()) == {10}


def shouting(text: str) -> list[str]:
    return text.split()


def test_a_tokenizer_of_ones_own_works_in_processes(tmp_path: Path) -> None:
    ngrams = HashedNgrams(num_buckets=500, tokenizer=shouting)
    alone = fit(ngrams=ngrams).log_weights(RAW)
    own = FITTED.log_weights(RAW)
    np.testing.assert_allclose(  # which adds up in another order
        alone.columns["log_weight"], own.columns["log_weight"], rtol=1e-12, atol=1e-12
    )
    fitted = fit(ngrams=ngrams)
    fitted.save(tmp_path / "dsir.npz")
    with pytest.raises(DataError, match=r"was fitted with the tokenizer shouting\. Pass it as"):
        FittedDSIR.load(tmp_path / "dsir.npz")
    again = FittedDSIR.load(tmp_path / "dsir.npz", tokenizer=shouting)
    np.testing.assert_array_equal(again.log_ratios, fitted.log_ratios)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 7])
def test_a_tokenizer_of_ones_own_gives_the_same_whatever_the_number_of_processes(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DSIR(ngrams=HashedNgrams(num_buckets=500, tokenizer=halves), min_length=5, seed=0)
    path = write(tmp_path / "raw.jsonl", RAW)
    alone = settings.fit(path, TARGET)
    expected = alone.select(path, num_selected=40)
    monkeypatch.setattr(
        "projections.text_sources.BLOCK_BYTES", 5000
    )  # some blocks for each process
    fitted = settings.fit(path, TARGET, num_workers=num_workers)
    np.testing.assert_array_equal(fitted.raw_counts, alone.raw_counts)
    chosen = fitted.select(path, num_selected=40, num_workers=num_workers)
    assert chosen.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(chosen.columns["key"], expected.columns["key"])


def halves(text: str) -> list[str]:
    """Split at spaces and in the middle, which no other tokenizer here does."""
    return [part for word in text.split() for part in (word[: len(word) // 2], word)]


def test_a_tokenizer_that_cannot_be_sent_to_processes_is_refused_before_the_work() -> None:
    settings = DSIR(ngrams=HashedNgrams(tokenizer=lambda text: text.split()), seed=0)
    with pytest.raises(TypeError, match=r"top of a module.*2 processes.*<lambda>.*num_workers=1"):
        settings.fit(RAW, TARGET, num_workers=2)
    assert len(settings.fit(RAW, TARGET, num_workers=1).log_weights(RAW)) == len(RAW)


# The sample that the raw distribution is fitted on.


def test_the_sample_depends_on_ids_and_seed_and_not_on_order() -> None:
    few = fit(num_ngrams_to_fit=5000)
    assert 2500 <= few.raw_counts.sum() <= 5000
    assert few.provenance["raw_share"] == 0.25
    settings = few.settings
    np.testing.assert_array_equal(settings.fit(RAW[::-1], TARGET).raw_counts, few.raw_counts)
    assert (fit(num_ngrams_to_fit=5000, seed=1).raw_counts != few.raw_counts).any()
    everything = fit(num_ngrams_to_fit=0)
    assert everything.provenance == {"raw_share": 1.0, "raw_rows": 400}
    assert everything.raw_counts.sum() == FITTED.raw_counts.sum()


def test_a_sample_of_sorted_files_is_not_their_head() -> None:
    rows = [{"id": n, "text": "a b" if n < 500 else "c d"} for n in range(1000)]
    ngrams = HashedNgrams(order=1, num_buckets=2**16)
    fitted = DSIR(ngrams=ngrams, num_ngrams_to_fit=300, seed=0).fit(rows, ["a c"])
    shares = np.sort(fitted.raw_probabilities[fitted.raw_probabilities > 0])
    assert len(shares) == 4
    assert 0.15 < shares[0] <= shares[-1] < 0.35


def test_data_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="the target data must hold at least one token"):
        DSIR(seed=0).fit(RAW, [" "])
    with pytest.raises(DataError, match="the raw data must hold at least one token"):
        DSIR(seed=0).fit([], TARGET)


# Drawing.


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_inclusion_frequencies_are_those_of_the_gumbel_law(temperature: float) -> None:
    weights = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
    p = weights ** (1 / temperature)
    p /= p.sum()
    expected = np.zeros(5)
    for first, second in permutations(range(5), 2):  # draws one after the other
        expected[[first, second]] += p[first] * p[second] / (1 - p[first])
    num_draws, counts = 4000, np.zeros(5)
    scores = Scores(np.arange(5), {"w": np.log(weights)})
    for seed in range(num_draws):
        draw = Draw(num_selected=2, seed=seed, temperature=temperature)
        counts[resample(scores, draw).ids] += 1
    errors = np.sqrt(expected * (1 - expected) / num_draws)
    assert (np.abs(counts / num_draws - expected) < 4.5 * errors).all()


@pytest.mark.parametrize("num_workers", [1, 2, 7])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_nothing_depends_on_workers_compression_or_blocks(
    tmp_path: Path, num_workers: int, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = FITTED.select(RAW, num_selected=40)
    for size in (300, 5000):
        monkeypatch.setattr("projections.text_sources.BLOCK_BYTES", size)
        path = write(tmp_path / f"raw.{ending}", RAW)
        fitted = FITTED.settings.fit(path, TARGET, num_workers=num_workers)
        np.testing.assert_array_equal(fitted.raw_counts, FITTED.raw_counts)
        chosen = fitted.select(path, num_selected=40, num_workers=num_workers)
        assert chosen.ids.tolist() == expected.ids.tolist()
        np.testing.assert_array_equal(chosen.columns["key"], expected.columns["key"])


def test_nothing_depends_on_the_order_of_rows_or_files(tmp_path: Path) -> None:
    expected = FITTED.select(RAW, num_selected=40)
    parts = [write(tmp_path / f"{n}.jsonl", RAW[n * 100 : n * 100 + 100]) for n in range(4)]
    for order in ([3, 1, 0, 2], [0, 1, 2, 3]):
        files = [parts[number] for number in order]
        assert FITTED.select(files, num_selected=40).ids.tolist() == expected.ids.tolist()
    assert FITTED.select(RAW[::-1], num_selected=40).ids.tolist() == expected.ids.tolist()
    bare = [[{"text": row["text"]} for row in RAW[:200]], [{"text": r["text"]} for r in RAW[200:]]]
    files = [write(tmp_path / f"bare{n}.jsonl", rows) for n, rows in enumerate(bare)]
    one, two = (FITTED.select(order, num_selected=40) for order in (files, files[::-1]))
    assert one.ids.tolist() == two.ids.tolist()


def test_a_smaller_draw_is_the_beginning_of_a_larger_one() -> None:
    large = FITTED.select(RAW, num_selected=100).ids.tolist()
    assert FITTED.select(RAW, num_selected=30).ids.tolist() == large[:30]
    assert FITTED.select(RAW, num_selected=30, seed=1).ids.tolist() != large[:30]


def test_temperature_zero_takes_the_largest_weights() -> None:
    scores = FITTED.log_weights(RAW)
    long = scores.columns["num_tokens"] >= 5
    order = np.argsort(-np.where(long, scores.columns["log_weight"], -np.inf))
    chosen = FITTED.select(RAW, num_selected=20, temperature=0)
    assert chosen.ids.tolist() == scores.ids[order[:20]].tolist()
    again = resample(scores, FITTED.draw(20, temperature=0))
    assert again.ids.tolist() == chosen.ids.tolist()


def test_short_rows_are_never_drawn_and_all_others_are_where_more_are_asked_for() -> None:
    lengths = FITTED.log_weights(RAW).columns["num_tokens"]
    for num in (int((lengths >= 5).sum()), 400, 10**9):
        chosen = FITTED.select(RAW, num_selected=num)
        assert len(chosen) == (lengths >= 5).sum()
        assert chosen.columns["num_tokens"].min() >= 5
    assert chosen.provenance["too_short"] == (lengths < 5).sum()
    assert len(fit(min_length=1000).select(RAW, num_selected=5)) == 0
    assert len(FITTED.select(RAW, num_selected=0)) == 0
    assert len(FITTED.select(RAW, num_tokens=0)) == 0
    assert len(FITTED.select([], num_selected=3)) == 0


def test_a_budget_of_tokens_is_just_reached() -> None:
    everything = FITTED.select(RAW, num_selected=400)
    chosen = FITTED.select(RAW, num_tokens=500)
    assert chosen.ids.tolist() == everything.ids[: len(chosen)].tolist()
    tokens = chosen.columns["num_tokens"]
    assert tokens.sum() >= 500 > tokens[:-1].sum()
    assert len(FITTED.select(RAW, num_tokens=10**9)) == len(everything)


def test_domains_have_their_shares() -> None:
    texts = Texts(RAW, TextColumns(domain="domain"))
    domains = {row["id"]: row["domain"] for row in RAW}
    chosen = FITTED.select(texts, num_selected=40, domain_shares={"a": 3, "b": 1})
    found = [domains[row] for row in chosen.ids.tolist()]
    assert (found.count("a"), found.count("b"), found.count("c")) == (30, 10, 0)
    with pytest.raises(ValueError, match=r"the data must have domains for `domain_shares`"):
        FITTED.select(RAW, num_selected=40, domain_shares={"a": 1})
    reasons = dict(FITTED.rejections(texts, chosen))
    assert any(reason == "nothing is drawn from the domain c" for reason in reasons.values())


def test_several_targets_draw_their_shares() -> None:
    targets = {"one": TARGET, "two": documents(80, RAW_P, 5)}
    fitted = FITTED.settings.fit(RAW, targets)
    assert sum(fitted.proportions.values()) == pytest.approx(1)
    shares = {"one": 0.25, "two": 0.75}
    scores = fitted.log_weights(RAW)
    assert scores.names == ["log_weight/one", "log_weight/two", "num_tokens"]
    for assignment in ("in turn", "best"):
        chosen = fitted.select(RAW, num_selected=40, proportions=shares, assignment=assignment)
        assert chosen.columns["target"].tolist().count("one") == 10
        assert len(set(chosen.ids.tolist())) == len(chosen) == 40
    alone = fitted.select(RAW, num_selected=10, proportions={"one": 1, "two": 0})
    in_turn = fitted.select(RAW, num_selected=40, proportions=shares)
    assert in_turn.ids[:10].tolist() == alone.ids.tolist()
    swapped = FITTED.settings.fit(RAW, dict(reversed(targets.items())))
    best = [
        one.select(RAW, num_selected=40, proportions=shares, assignment="best")
        for one in (fitted, swapped)
    ]
    assert set(best[0].ids.tolist()) == set(best[1].ids.tolist())
    with pytest.raises(ValueError, match=r"`proportions` must be those of the targets"):
        fitted.select(RAW, num_selected=3, proportions={"three": 1})


def test_pooled_targets_are_their_mixture() -> None:
    fitted = FITTED.settings.fit(RAW, {"one": TARGET, "two": documents(80, RAW_P, 5)})
    mixed = fitted.pooled({"one": 1, "two": 3})
    p = fitted.target_counts / fitted.target_counts.sum(1, keepdims=True)
    found = mixed.target_counts[0] / mixed.target_counts.sum()
    np.testing.assert_allclose(found, 0.25 * p[0] + 0.75 * p[1], atol=1 / mixed.target_counts.sum())
    counted = DSIR(ngrams=SMALL, seed=0).fit(RAW, TARGET + documents(80, RAW_P, 5))
    np.testing.assert_array_equal(fitted.pooled().target_counts, counted.target_counts)


@pytest.mark.parametrize("unit", ["num_selected", "num_tokens"])
@pytest.mark.parametrize("assignment", ["in turn", "best"])
def test_a_stream_gives_what_all_rows_at_once_give(
    unit: str, assignment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(7)
    ids = pa.array([f"r{n}" for n in range(3000)])
    weights, tokens = random.normal(size=(3000, 3)), random.integers(1, 50, 3000)
    arguments: dict[str, Any] = {unit: 200, "assignment": assignment, "seed": 0}
    draw = Draw(**arguments, proportions={"a": 1, "b": 2, "c": 1})
    expected = Resampler(draw, ["a", "b", "c"])
    expected.offer(ids, weights, tokens)
    monkeypatch.setattr("selection.dsir.top_rows.WAITING", 20)
    found = Resampler(draw, ["a", "b", "c"])
    order = random.permutation(3000)
    for part in np.array_split(order, 50):
        found.offer(ids.take(pa.array(part)), weights[part], tokens[part])
    assert found.selection().ids.tolist() == expected.selection().ids.tolist()


def test_weights_that_are_no_numbers_are_named_and_zero_is_never_drawn() -> None:
    for bad in (np.nan, np.inf):
        scores = Scores(np.array(["x", "y"]), {"w": np.array([0.0, bad])})
        with pytest.raises(NonFiniteError, match=r"Those of the ids \['y'\] are not"):
            resample(scores, Draw(num_selected=1, seed=0))
    scores = Scores(np.arange(3), {"w": np.array([-np.inf, 0.0, -np.inf])})
    chosen = resample(scores, Draw(num_selected=3, seed=0))
    assert chosen.ids.tolist() == [1]
    assert chosen.provenance["weight_zero"] == 2
    assert chosen.provenance["effective_sample_size"] == pytest.approx(1)
    nothing = resample(scores, Draw(num_selected=3, seed=0, min_length=9))
    assert len(nothing) == 0
    assert nothing.provenance["effective_sample_size"] is None


def test_the_effective_sample_size_is_that_of_the_weights() -> None:
    logs = np.random.default_rng(0).normal(size=100)
    found = resample(Scores(np.arange(100), {"w": logs}), Draw(num_selected=1, seed=0)).provenance
    w = np.exp(logs)
    assert found["effective_sample_size"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found["largest_weight_share"] == pytest.approx(w.max() / w.sum())


def test_ids_that_are_drawn_twice_are_named() -> None:
    rows = [{"id": "same", "text": "w1 " * 10}, {"id": "same", "text": "w2 " * 10}, *RAW]
    with pytest.raises(DataError, match=r"an id of its own\. Drawn more than once: \['same'\]"):
        FITTED.select(rows, num_selected=400)
    with pytest.raises(DataError, match=r"Repeated: \['same'\]"):
        FITTED.log_weights(rows)


def test_every_row_that_is_left_out_has_a_reason() -> None:
    chosen = FITTED.select(RAW, num_selected=40)
    reasons = dict(FITTED.rejections(RAW, chosen))
    assert set(reasons) | set(chosen.ids.tolist()) == {row["id"] for row in RAW}
    assert len(reasons) == 360
    lengths = {row["id"]: len(row["text"].split()) for row in RAW}
    for row_id, reason in reasons.items():
        if lengths[row_id] < 5:
            assert reason == f"{lengths[row_id]} tokens are fewer than 5"
        else:
            assert re.fullmatch(r"not drawn at log weight -?[\d.e+-]+", reason)


def test_a_selection_carries_weights_and_provenance_to_disk(tmp_path: Path) -> None:
    chosen = FITTED.select(RAW, num_selected=40)
    chosen.save(tmp_path / "chosen.parquet")
    again = Selection.load(tmp_path / "chosen.parquet")
    assert again.ids.tolist() == chosen.ids.tolist()
    for name, values in chosen.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)
    assert again.provenance["dsir"]["settings"]["ngrams"]["num_buckets"] == 500
    assert [row["id"] for row in chosen.apply(RAW)] == chosen.ids.tolist()


def test_a_fit_comes_back_from_disk(tmp_path: Path) -> None:
    FITTED.save(tmp_path / "dsir.npz")
    again = FittedDSIR.load(tmp_path / "dsir.npz")
    assert again.settings == FITTED.settings
    np.testing.assert_array_equal(again.log_ratios, FITTED.log_ratios)
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(DataError, match=r"text\.npz must be a fitted DSIR, and cannot be read"):
        FittedDSIR.load(tmp_path / "text.npz")


# Runs that are killed, and lines that are too long.


class KilledError(Exception):
    pass


@pytest.mark.parametrize("alive", [0, 1, 5, 9])
def test_a_killed_run_goes_on_and_ends_with_the_same(
    tmp_path: Path, alive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.text_sources.BLOCK_ROWS", 40)
    monkeypatch.setattr("selection.dsir.passes.SAVE_EVERY", 0.0)
    settings = FITTED.settings
    fitted = settings.fit(RAW, TARGET)
    expected = fitted.select(RAW, num_selected=40)
    weigh = []

    class Dying(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            for number, row in enumerate(super().__iter__()):
                if number >= 40 * alive:
                    raise KilledError
                weigh.append(row)
                yield row

    rows = Dying(RAW)
    for part in ("fit", "draw"):
        with pytest.raises(KilledError):
            if part == "fit":
                settings.fit(rows, TARGET, path=tmp_path)
            else:
                fitted.select(rows, num_selected=40, path=tmp_path)
    again = settings.fit(RAW, TARGET, path=tmp_path)
    np.testing.assert_array_equal(again.raw_counts, fitted.raw_counts)
    chosen = again.select(RAW, num_selected=40, path=tmp_path)
    assert chosen.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(chosen.columns["key"], expected.columns["key"])
    assert dict(chosen.provenance) == dict(expected.provenance)


@pytest.mark.parametrize("count", [10**6, pytest.param(17 * 10**6, marks=pytest.mark.slow)])
def test_a_line_of_100_megabytes_is_a_row_like_any_other(tmp_path: Path, count: int) -> None:
    long = "w1 w2 " * count
    path = write(tmp_path / "raw.jsonl", [*RAW, {"id": "long", "text": long}, *TARGET])
    scores = FITTED.log_weights(path)
    where = scores.ids.tolist().index("long")
    assert scores.columns["num_tokens"][where] == 2 * count
    pair = FITTED.log_weights(["w1 w2", "w2 w1"]).columns["log_weight"]
    one = FITTED.log_weights(["w1", "w2"]).columns["log_weight"].sum()
    expected = count * one + count * (pair[0] - one) + (count - 1) * (pair[1] - one)
    assert scores.columns["log_weight"][where] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `num_selected` and `num_tokens` must be given. Got None and None"),
        ({"num_selected": 1, "num_tokens": 2}, "exactly one of"),
        ({"num_selected": -1}, "must be at least 0. Got -1"),
        ({"num_selected": 1, "temperature": -1}, r"`temperature` must be in \[0"),
        ({"num_selected": 1, "domain_shares": {"a": -1}}, "`domain_shares` must be at least 0"),
        ({"num_selected": 1, "proportions": {"a": 0}}, "`proportions` must be at least 0, and not"),
    ],
)
def test_a_bad_draw_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(**arguments, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": -1}, "`min_length` must be at least 0. Got -1"),
        ({"smoothing": -0.5}, "`smoothing` must be at least 0. Got -0.5"),
        ({"chunk_tokens": -3}, "`chunk_tokens` must be at least 1. Got -3"),
    ],
)
def test_a_bad_setting_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSIR(**arguments, seed=0)


def test_parts_of_a_budget_sum_to_it() -> None:
    for shares in combinations((0.1, 0.2, 0.3, 0.7, 0), 3):
        parts = split_budget(17, dict(zip("abc", shares, strict=True)))
        assert sum(parts.values()) == 17
        assert min(parts.values()) >= 0


def test_equal_keys_are_decided_by_the_id() -> None:
    ids = pa.array([f"r{n}" for n in range(50)])
    for order in (np.arange(50), np.arange(50)[::-1]):
        top = TopRows("top", budget=7, unit="rows")
        for row in order:
            top.offer(ids[row : row + 1], np.ones(1), {"num_tokens": np.ones(1)})
        kept = top.ids.to_pylist() if order[0] == 0 else kept
        assert top.ids.to_pylist() == kept
