"""Scores for pruning: what a pass computes beside losses, and what needs more than one look."""

from itertools import pairwise
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cases import build
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from projections import (
    Agreement,
    Classification,
    DataError,
    Embeddings,
    GradientNorm,
    GradientTotal,
    LayerInputs,
    PassSettings,
    Regression,
    Scores,
    Statistic,
    WeightAlignment,
    output_layer,
    run_pass,
    summarize_alignment,
)
from selection import (
    Folds,
    LearningHistory,
    UntrainedWarning,
    average_runs,
    compare_runs,
    find_nearest,
    memorisation,
    score_agreement,
    score_cluster_distance,
    score_grand,
    score_held_out,
    untrained,
)

CASES = ("mlp-layernorm-subclass", "gpt2-tied", "convnet-groups-reflect")
EXACT = 1e-9  # float64, sums in another order
SMALL = PassSettings(batch_size=2, shard_size=3)


# Agreement with the others.


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("name", CASES)
def test_agreement_is_the_cosine_with_the_sum_of_all_other_gradients(name: str) -> None:
    task, examples = build(name, 5)
    total = GradientTotal()
    run_pass(task, examples, accumulators=[total], settings=SMALL)
    found = run_pass(task, examples, [Agreement(total)], settings=SMALL).columns["agreement"]
    rows = oracles.flat_gradients(task, examples)
    wanted = [cosine(row, rows.sum(0) - row) for row in rows]
    assert_allclose(found, wanted, atol=EXACT)
    assert_allclose(score_agreement(rows)["agreement"].values, wanted, atol=EXACT)


def test_the_total_of_two_parts_is_the_total_of_the_whole() -> None:
    task, examples = build("gpt2-tied", 5)
    whole, first, second = GradientTotal(), GradientTotal(), GradientTotal()
    for total, part in ((whole, examples), (first, examples[:2]), (second, examples[2:])):
        run_pass(task, part, accumulators=[total])
    first.merge(second.state())
    assert first.num_examples == whole.num_examples == 5
    again = GradientTotal()
    again.load(first.state())
    for name, part in whole.parts.items():
        torch.testing.assert_close(again.parts[name], part)


def test_an_example_alone_agrees_with_nobody() -> None:
    task, examples = build("mlp-layernorm-subclass", 1)
    total = GradientTotal()
    run_pass(task, examples, accumulators=[total])
    assert run_pass(task, examples, [Agreement(total)]).columns["agreement"].tolist() == [0.0]
    assert score_agreement(np.ones((1, 3)))["agreement"].values.tolist() == [0.0]


def test_a_total_of_other_components_is_refused() -> None:
    task, examples = build("mlp-layernorm-subclass", 2)
    total = GradientTotal()
    first = next(name for name, _ in task.model.named_modules() if name)
    run_pass(task, examples, accumulators=[total], settings=PassSettings(layers=(first + "*",)))
    with pytest.raises(ValueError, match="`total` must come from a pass over the same components"):
        run_pass(task, examples, [Agreement(total)])


def test_agreement_within_a_group_leaves_the_other_groups_out() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    groups = np.array(list("abc") * 4)
    found = score_agreement(Embeddings(rows), groups)["group_agreement"].values
    for row in range(12):
        mates = (groups == groups[row]) & (np.arange(12) != row)
        assert found[row] == pytest.approx(cosine(rows[row], rows[mates].sum(0)), abs=1e-6)
    with pytest.raises(DataError, match=r"`groups` must have one entry a row, 12\. Got the shape"):
        score_agreement(rows, ["a"])


# Alignment with the weights, and features.


def test_weight_alignment_is_the_closed_form_of_a_linear_head() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(6, 4).double(), torch.arange(6) % 3
    rows = list(zip(inputs, labels, strict=True))
    columns = [WeightAlignment(model), LayerInputs(model)]
    table = run_pass(Classification(model), rows, columns, settings=SMALL)
    with torch.no_grad():
        h = model[:2](inputs)
        e = model(inputs).softmax(1) - nn.functional.one_hot(labels, 3)
        weight = model.get_parameter("2.weight")
        wanted = -((h @ weight.mT) * e).sum(1) / (h.norm(dim=1) * e.norm(dim=1) * weight.norm())
    assert_allclose(table.columns["weight_alignment"], wanted, atol=EXACT)
    assert_allclose(table.columns["features"], h, atol=EXACT)


def test_weight_alignment_of_a_layer_used_at_many_positions_is_that_of_the_whole_gradient() -> None:
    task, examples = build("llama-left-padding", 5)
    name = output_layer(task.model)
    table = run_pass(task, examples, [WeightAlignment(task.model)], settings=SMALL)
    gradients = oracles.gradients_one_by_one(task, examples)[f"{name}.weight"].flatten(1).numpy()
    weight = task.model.get_parameter(f"{name}.weight").detach().flatten().numpy()
    wanted = [cosine(-row, weight) for row in gradients]
    assert_allclose(table.columns["weight_alignment"], wanted, atol=EXACT)


def test_features_of_a_text_are_means_over_its_tokens_and_not_over_its_padding() -> None:
    task, examples = build("llama-left-padding", 4)
    together = run_pass(task, examples, [LayerInputs(task.model)]).columns["features"]
    for row, example in enumerate(examples):
        alone = run_pass(task, [example], [LayerInputs(task.model)]).columns["features"]
        assert_allclose(together[row], alone[0], atol=EXACT)


def test_a_layer_that_cannot_be_aligned_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"`layer` must be a module of the model\. It has no 'x'"):
        WeightAlignment(model, "x")
    with pytest.raises(ValueError, match=r"must have a trainable matrix `weight`\. '1' has none"):
        WeightAlignment(model, "1")
    with pytest.raises(ValueError, match=r"the model must have an `nn.Linear` layer\. LayerNorm"):
        WeightAlignment(nn.LayerNorm(3))
    rows = [(torch.ones(2), 0)]
    first = PassSettings(layers=("0",))
    for column in (WeightAlignment(model), LayerInputs(model)):
        with pytest.raises(ValueError, match=r"the pass must look at the weight '2\.weight'"):
            run_pass(Classification(model), rows, [column], settings=first)


def test_alignments_in_two_heaps_have_no_summary() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 500)
    assert summarize_alignment(values) > 0 > summarize_alignment(-values)
    for heaps in (np.array([-1.0, 1.0] * 9), np.ones(4), np.zeros(0)):
        with pytest.raises(ValueError, match=r"must have a kurtosis above -1\.2"):
            summarize_alignment(heaps)


def test_correct_is_whether_the_label_has_the_largest_logit() -> None:
    model = nn.Linear(2, 3)
    nn.init.zeros_(model.bias)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    rows = [(torch.tensor([1.0, 2.0]), label) for label in range(3)]
    found = run_pass(Classification(model), rows, [Statistic("correct")]).columns["correct"]
    assert found.tolist() == [0, 1, 1]  # equals count as right


# Learning and forgetting.


def slow_history(marks: np.ndarray) -> tuple[list[float], list[int]]:
    forgotten, first = [], []
    for row in marks.T:
        falls = sum(a > b for a, b in pairwise(row))
        forgotten.append(falls if row.any() else len(row))
        first.append(int(row.argmax()) + 1 if row.any() else len(row) + 1)
    return forgotten, first


def test_forgetting_counts_falls_and_puts_what_was_never_learnt_on_top() -> None:
    marks = np.random.default_rng(0).integers(0, 2, (7, 40))
    marks[:, 3] = 0
    history = LearningHistory(np.arange(40))
    for visit, row in enumerate(marks):
        order = np.random.default_rng(visit).permutation(40)
        for part in np.array_split(order, 3):
            history.update(part, row[part])
        state = history.state_dict()
        history = LearningHistory(np.arange(40))
        history.load_state_dict(state)
    scores = history.scores()
    forgotten, first = slow_history(marks)
    assert scores["forgetting"].values.tolist() == forgotten
    assert scores["first_learnt"].values.tolist() == first
    assert (
        scores["never_learnt"].values.nonzero()[0].tolist()
        == np.flatnonzero(~marks.any(0)).tolist()
    )
    assert_allclose(scores["consistency"].values, marks.mean(0))
    runs = [Scores(np.arange(40), {"correct": row.astype(float)}) for row in marks]
    again = LearningHistory.of_checkpoints(runs).scores()
    assert_array_equal(again["forgetting"].values, forgotten)


def test_wrong_visits_are_refused() -> None:
    history = LearningHistory(np.array(["a", "b"]))
    with pytest.raises(ValueError, match="`positions` must hold each row at most once"):
        history.update(np.array([0, 0]), np.array([1, 0]))
    with pytest.raises(
        DataError, match=r"visited at least once\. 2 were not, such as \['a', 'b'\]"
    ):
        history.scores()
    with pytest.raises(ValueError, match=r"the state must have 2 rows\. Got 3"):
        history.load_state_dict(LearningHistory(np.arange(3)).state_dict())
    with pytest.raises(ValueError, match="`checkpoints` must hold the scores of at least one"):
        LearningHistory.of_checkpoints([])
    scores = [Scores(np.array(ids), {"correct": np.ones(2)}) for ids in ([0, 1], [1, 0])]
    with pytest.raises(DataError, match="checkpoints must be about the same ids"):
        LearningHistory.of_checkpoints(scores)


# Memorisation.


def test_folds_are_even_and_belong_to_ids() -> None:
    ids = np.array([f"r{n}" for n in range(23)])
    folds = Folds(num_folds=4, num_repeats=3, seed=1)
    found = folds.assign(ids)
    assert all(np.ptp(np.bincount(row)) <= 1 for row in found)
    order = np.random.default_rng(0).permutation(23)
    assert_array_equal(folds.assign(ids[order]), found[:, order])
    assert not (found[0] == found[1]).all()
    included = folds.included(ids)
    assert included.shape == (12, 23)
    assert (~included).sum(0).tolist() == [3] * 23
    with pytest.raises(ValueError, match=r"`num_folds` must be at most the number of rows, 2\."):
        folds.assign(ids[:2])
    with pytest.raises(ValueError, match=r"`num_folds` must be at least 2\. Got 1"):
        Folds(num_folds=1, seed=0)


class Remembers(nn.Module):
    """Is right about the inputs that it was given, and else says 0."""

    def __init__(self, known: dict[int, int]) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 3)
        nn.init.zeros_(self.table.weight)
        self.table.weight.data[:, 0] = 1
        for row, label in known.items():
            self.table.weight.data[row, label] = 2

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.table(rows)


def test_memorisation_is_what_a_model_knows_of_a_row_only_by_being_trained_on_it() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 0]
    data = [(torch.tensor(row), label) for row, label in enumerate(labels)]

    def train(positions: np.ndarray, number: int) -> Classification:
        return Classification(Remembers({int(p): labels[p] for p in positions}))

    scores = score_held_out(train, data, folds=Folds(num_folds=2, num_repeats=2, seed=0))
    guessed = [float(label == 0) for label in labels]
    assert scores["trained_on"].values.tolist() == [1.0] * 8
    assert scores["held_out"].values.tolist() == guessed
    assert scores["memorisation"].values.tolist() == [1 - value for value in guessed]


def test_rows_that_no_model_was_without_are_refused() -> None:
    with pytest.raises(DataError, match=r"not in that of another\. 1 are not, such as \['b'\]"):
        memorisation(np.array(["a", "b"]), np.ones((2, 2)), np.array([[True, True], [False, True]]))


# GraNd and runs.


def test_grand_is_the_mean_norm_of_whole_gradients_and_warns_at_initialisation() -> None:
    torch.manual_seed(0)
    tasks = [Classification(nn.Linear(3, 2).double()) for _ in range(3)]
    rows = [(torch.randn(3).double() / 10, row % 2) for row in range(4)]
    with pytest.warns(UntrainedWarning, match=r"no better than an even guess .* 2 labels"):
        scores = score_grand(tasks, rows)
    norms = [np.linalg.norm(oracles.flat_gradients(task, rows), axis=1) for task in tasks]
    assert_allclose(scores["grand"].values, np.mean(norms, 0), rtol=EXACT)
    assert_allclose(scores["grand_spread"].values, np.std(norms, 0, ddof=1), rtol=1e-7)
    with pytest.raises(ValueError, match="`tasks` must hold at least one"):
        score_grand([], rows)


def test_a_trained_model_and_one_of_unknown_labels_are_not_warned_about() -> None:
    model = nn.Linear(1, 2)
    model.weight.data = torch.tensor([[-5.0], [5.0]])
    nn.init.zeros_(model.bias)
    rows = [(torch.tensor([x]), int(x > 0)) for x in (-1.0, 1.0)]
    assert score_grand([Classification(model)], rows).names == ["grand"]
    regression = [(torch.ones(1), torch.zeros(2))]
    assert score_grand([Regression(nn.Linear(1, 2))], regression).names == ["grand"]


def test_an_untrained_language_model_is_known_by_its_loss_a_token() -> None:
    task, examples = build("llama-left-padding", 4)
    columns = [Statistic("loss"), Statistic("num_tokens"), GradientNorm()]
    found = run_pass(task, examples, columns).columns
    sentence = untrained(task, found["loss"], found["num_tokens"])
    assert sentence is not None and "13 labels guessed evenly" in sentence
    assert untrained(task, found["loss"] / 9, found["num_tokens"]) is None


def test_runs_are_averaged_and_compared() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(4, 30))
    runs = [Scores(np.arange(30), {"el2n": row, "flat": np.ones(30)}) for row in values]
    both = average_runs(runs)
    assert_allclose(both["el2n"].values, values.mean(0))
    assert_allclose(both["el2n_spread"].values, values.std(0, ddof=1))
    el2n, flat = compare_runs(runs, top=0.1)
    matrix = np.asarray(np.corrcoef(values.argsort(1).argsort(1)))
    pairs = matrix[np.triu_indices(4, 1)]
    assert el2n.rank_correlation == pytest.approx(pairs.mean())
    assert el2n.lowest_rank_correlation == pytest.approx(pairs.min())
    assert np.isnan(flat.rank_correlation) and flat.top_overlap == 1
    same = compare_runs([runs[0], runs[0]])[0]
    assert (same.rank_correlation, same.top_overlap) == (1, 1)


def test_runs_that_do_not_fit_are_refused() -> None:
    one = Scores(np.arange(2), {"loss": np.ones(2)})
    with pytest.raises(ValueError, match=r"`len\(runs\)` must be at least 2\. Got 1"):
        average_runs([one])
    for other in (Scores(np.array([1, 0]), one.columns), Scores(one.ids, {"x": np.ones(2)})):
        with pytest.raises(DataError, match="runs must score the same ids"):
            compare_runs([one, other])


# Nearness.


def unit(seed: int, count: int, dims: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dims))
    return rows.astype(np.float32)


def test_the_nearest_row_is_that_of_the_largest_cosine() -> None:
    rows = unit(0, 60, 5)
    rows[7] = 0
    ids = np.random.default_rng(1).permutation(60)
    found = find_nearest(Embeddings(rows, ids))
    norms = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    cosines = (rows @ rows.T) / norms[:, None] / norms
    np.fill_diagonal(cosines, -np.inf)
    real = np.arange(60) != 7
    assert_array_equal(found.nearest[real], ids[cosines.argmax(1)][real])
    assert_allclose(found.cosines[real], cosines.max(1)[real], atol=1e-6)
    assert found.cosines[7] == 0
    assert found.scores().names == ["near_duplicate"]


def test_copies_find_each_other_and_never_themselves() -> None:
    found = find_nearest(np.repeat(unit(0, 4, 3), 5, axis=0))
    assert (found.nearest != np.arange(20)).all()
    assert_array_equal(found.nearest // 5, np.arange(20) // 5)
    assert_allclose(found.cosines, 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"`len\(embeddings\)` must be at least 2"):
        find_nearest(np.ones((1, 2)))


def test_the_distance_to_a_centre_does_not_depend_on_the_order_or_the_length_of_rows() -> None:
    rows, order = unit(0, 50, 4), np.random.default_rng(2).permutation(50)

    def score(given: Any) -> Scores:
        return score_cluster_distance(given, num_clusters=5, seed=0)

    one = score(Embeddings(rows))
    other = score(Embeddings(3 * rows[order], order))
    assert_array_equal(other.ids, order)
    for name in one.names:
        assert_allclose(other[name].values, one[name].values[order], atol=1e-6)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for cluster in range(5):
        members = one["cluster"].values == cluster
        assert members.any()
        mean = directions[members].mean(0)
        assert np.linalg.norm(mean) <= 1
