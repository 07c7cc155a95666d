"""Retraining as the truth: training many at once, and every measure with its error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from influence import (
    Estimate,
    Recipe,
    Trainer,
    class_detection,
    classification_losses,
    error_over_subsets,
    language_losses,
    lds_ceiling,
    leave_one_out,
    leave_one_out_correlation,
    linear_datamodeling_score,
    mislabel_detection,
    quantile_drop,
    random_subsets,
    recall_of_members,
    retrained_losses,
    shortcut_detection,
    subset_detection,
    without_top,
)
from projections import ConvergenceError, StoreMismatchError, UnsupportedLayerError

TIGHT = 1e-6  # float32, a few dozen steps
NUM = 24


def trainer(recipe: Recipe | None = None) -> Trainer:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(NUM, 4, generator=generator)
    labels = torch.randint(3, (NUM,), generator=generator)
    return Trainer(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        classification_losses,
        (inputs, labels),
        recipe or Recipe(learning_rate=0.1, batch_size=4, epochs=3),
    )


def train_alone(trained: Trainer, mask: np.ndarray, share: float, seed: int) -> nn.Module:
    """One model with a plain loop: obviously correct, slow."""
    model, recipe = trained.start(seed), trained.recipe
    if recipe.optimizer == "adam":
        step: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    else:
        step = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=recipe.momentum)
    size = round(recipe.batch_size / share)
    order = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        rows = torch.randperm(len(mask), generator=order).tolist()
        for start in range(0, len(rows) - size + 1, size):
            own = [row for row in rows[start : start + size] if mask[row]]
            step.zero_grad()
            batch = tuple(part[own] for part in trained.data)
            losses = trained.losses(model, dict(model.named_parameters()), batch)
            (losses.sum() / recipe.batch_size).backward()
            step.step()
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("at_once", [2, 5])
def test_models_trained_at_once_are_those_trained_alone(optimizer: str, at_once: int) -> None:
    recipe = Recipe(
        optimizer=optimizer,
        learning_rate=0.05,
        batch_size=4,
        epochs=3,
        at_once=at_once,
    )
    many = trainer(recipe)
    masks = random_subsets(NUM, 3, seed=0)
    params = many.train(masks, seed=7)
    for position, mask in enumerate(masks):
        alone = train_alone(many, mask, float(masks.mean()), 7)
        for name, value in alone.named_parameters():
            torch.testing.assert_close(params[name][position], value.detach(), atol=TIGHT, rtol=0)
        found = many.model(params, position)(many.data[0])
        torch.testing.assert_close(found, alone(many.data[0]), atol=TIGHT, rtol=0)


def test_subsets_that_are_equal_give_equal_models_and_the_generator_stays() -> None:
    many = trainer()
    mask = random_subsets(NUM, 1, seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    params = many.train(np.concatenate([mask, mask]), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value[0], value[1]) for value in params.values())
    assert not torch.equal(many.train(mask, seed=2)["0.weight"], params["0.weight"][:1])


def test_a_sequence_model_trains_at_once_too() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 7)

        def forward(self, tokens: torch.Tensor) -> "Tiny":
            self.logits = self.table(tokens)
            return self

    tokens = torch.randint(7, (8, 5), generator=torch.Generator().manual_seed(0))
    many = Trainer(Tiny, language_losses, (tokens,), Recipe(batch_size=4, epochs=2))
    masks = random_subsets(8, 2, seed=0)
    alone = train_alone(many, masks[1], 0.5, 0)
    found = many.train(masks, seed=0)["table.weight"][1]
    torch.testing.assert_close(found, alone.get_parameter("table.weight").detach())


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = trainer(Recipe(learning_rate=0.1, batch_size=4, epochs=2, at_once=2))
    masks, queries = random_subsets(NUM, 5, seed=0), tuple(part[:6] for part in many.data)
    whole = retrained_losses(many, masks, queries, seeds=[0, 1])
    assert whole.shape == (2, 5, 6)
    calls = []
    original = Trainer.train_group

    def counted(self: Trainer, *arguments: Any, **named: Any) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "train_group", counted)
    with pytest.raises(KeyboardInterrupt):
        retrained_losses(many, masks, queries, seeds=[0, 1], kept=tmp_path)
    found = retrained_losses(many, masks, queries, seeds=[0, 1], kept=tmp_path)
    assert np.array_equal(found, whole)
    assert len(calls) == 4 + 3
    again = retrained_losses(many, masks, queries, seeds=[0, 1], kept=tmp_path)
    assert len(calls) == 7
    assert np.array_equal(again, whole)


def test_losses_of_another_recipe_are_refused(tmp_path: Path) -> None:
    masks = random_subsets(NUM, 2, seed=0)
    queries = trainer().data
    retrained_losses(trainer(), masks, queries, seeds=[0], kept=tmp_path)
    other = trainer(Recipe(learning_rate=0.2, batch_size=4, epochs=3))
    with pytest.raises(StoreMismatchError, match=r"must be of the same data, subsets, queries"):
        retrained_losses(other, masks, queries, seeds=[0], kept=tmp_path)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((1, 5), np.int8), r"one column for each of 24 examples\. Got 5\."),
        (np.eye(2, NUM, dtype=np.int8), r"smallest subset` must be at least 4\. Got 1\."),
        (np.tri(NUM, dtype=np.int8)[11:], r"sizes within a tenth.*Got 12 to 24"),
        (np.ones((0, NUM), np.int8), r"`masks` must hold at least one"),
        (np.full((2, NUM), 2, np.int8), r"must hold 0 and 1 only"),
    ],
    ids=["width", "small", "unlike", "none", "numbers"],
)
def test_subsets_that_cannot_be_trained_are_refused(masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer().train(masks, seed=0)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)], ids=["drop", "norm"])
def test_models_with_a_state_of_their_own_are_refused(layer: nn.Module) -> None:
    many = trainer()
    other = Trainer(
        lambda: nn.Sequential(layer, nn.Linear(4, 3)), many.losses, many.data, many.recipe
    )
    with pytest.raises(UnsupportedLayerError, match=r"without dropout.*'0' is"):
        other.train(random_subsets(NUM, 2, seed=0), seed=0)


def test_a_run_that_diverges_is_refused() -> None:
    many = trainer(Recipe(learning_rate=3e38, batch_size=4, epochs=3))
    with pytest.raises(ConvergenceError, match=r"must be finite.*Lower `learning_rate`"):
        many.train(random_subsets(NUM, 2, seed=0), seed=0)


def test_a_recipe_refuses_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1\. Got 0\."):
        Recipe(batch_size=0)
    with pytest.raises(ValueError, match=r"`optimizer` must be one of 'adam', 'sgd'"):
        Recipe(optimizer="lion")


def test_the_score_is_the_mean_spearman_correlation() -> None:
    random = np.random.default_rng(0)
    masks = random_subsets(30, 12, seed=0)
    scores, losses = random.normal(size=(4, 30)), random.normal(size=(12, 4))
    losses[:, 1] = np.round(losses[:, 1])  # ties
    found = linear_datamodeling_score(masks, scores, losses)
    pairs = [(masks @ scores[q], -losses[:, q]) for q in range(4)]
    wanted = np.array([np.asarray(spearmanr(*pair))[0] for pair in pairs])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
    assert found.standard_error == pytest.approx(np.std(wanted, ddof=1) / 2)


def test_losses_that_are_sums_of_scores_give_one_and_the_sign_counts() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 40))
    masks = random_subsets(40, 20, seed=1)
    losses = -(masks @ scores.T)
    assert linear_datamodeling_score(masks, scores, losses).mean == pytest.approx(1)
    assert linear_datamodeling_score(masks, -scores, losses).mean == pytest.approx(-1)
    assert error_over_subsets(masks, scores, losses) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_the_two_errors_together_are_the_spread_over_new_subsets_and_queries() -> None:
    found, errors = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        scores = random.normal(size=(40, 50))
        masks = random_subsets(50, 40, seed=seed)
        common = random.normal(size=(40, 1)) * 4  # what all queries share in a subset
        losses = -(masks @ scores.T) + common + random.normal(size=(40, 40))
        one = linear_datamodeling_score(masks, scores, losses)
        found.append(one.mean)
        errors.append(one.standard_error**2 + error_over_subsets(masks, scores, losses) ** 2)
    assert np.sqrt(np.mean(errors)) == pytest.approx(np.std(found, ddof=1), rel=0.4)


def test_the_ceiling_is_what_a_perfect_score_reaches() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(200, 60))
    masks = random_subsets(60, 100, seed=0)
    truth = -(masks @ scores.T)
    noise = random.normal(size=(4, *truth.shape)) * truth.std() * 1.5
    losses = truth + noise
    ceiling = lds_ceiling(losses)
    reached = linear_datamodeling_score(masks, scores, losses.mean(0))
    assert abs(ceiling.mean - reached.mean) < 4 * (ceiling.standard_error + reached.standard_error)
    assert lds_ceiling(noise).mean < 0.2


def test_the_top_is_removed_and_the_rise_is_that_of_the_query_itself() -> None:
    scores = np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 5.0]])
    assert without_top(scores, share=1 / 3).tolist() == [[1, 0, 1], [0, 1, 1]]
    rise = quantile_drop(np.array([[2.0, 9.0], [9.0, 4.0]]), np.array([1.0, 1.0]))
    assert (rise.mean, rise.standard_error) == (2.0, 1.0)


def test_removing_what_helps_most_raises_the_loss_of_a_trained_model() -> None:
    many = trainer(Recipe(learning_rate=0.1, batch_size=4, epochs=20))
    queries = tuple(part[:4] for part in many.data)
    scores = np.eye(4, NUM)  # the query itself is an example
    masks = np.concatenate([np.ones((1, NUM), np.int8), without_top(scores, share=0.04)])
    losses = retrained_losses(many, masks, queries, seeds=[0])[0]
    assert quantile_drop(losses[1:], losses[0]).mean > 0


def test_leave_one_out_correlates_with_the_losses_of_the_removed() -> None:
    removed = [3, 0, 2]
    assert leave_one_out(4, removed).tolist() == [[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 1]]
    scores = np.array([[5.0, 0.0, 1.0, 9.0]])
    without = np.array([[0.9], [0.5], [0.1]])
    assert leave_one_out_correlation(scores, removed, without).mean == pytest.approx(1)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties: bool) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(3, 50))
    scores = np.round(scores) if ties else scores
    labels, asked = random.integers(3, size=50), np.array([0, 1, 2])
    found = class_detection(scores, labels, asked)
    wanted = [roc_auc_score(labels == q, scores[q]) for q in asked]
    np.testing.assert_allclose(found.values, wanted)
    one = mislabel_detection(scores[0], labels == 0)
    assert one.mean == pytest.approx(wanted[0])
    assert subset_detection(scores[:1], labels == 0).mean == pytest.approx(wanted[0])


def test_the_error_of_an_area_is_its_spread_over_draws() -> None:
    random = np.random.default_rng(0)
    wrong = np.arange(120) < 30
    found = [mislabel_detection(random.normal(size=120) + wrong, wrong) for _ in range(300)]
    spread = np.std([one.mean for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.15)


def test_recall_counts_members_among_as_many_first() -> None:
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    members = np.array([[True, False, True, False]])
    assert recall_of_members(scores, members).mean == 0.5


def test_a_method_that_always_ranks_carriers_high_finds_no_shortcut() -> None:
    carriers = np.array([True, True, False, False])
    always = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert shortcut_detection(always, always, carriers).mean == 0
    assert shortcut_detection(always, -always, carriers).mean == 1


def refusals() -> dict[str, tuple[Callable[[], object], str]]:
    two = np.zeros((2, 3))
    masks = np.ones((4, 3), np.int8)
    members = np.ones(3, dtype=bool)
    return {
        "no values": (lambda: Estimate.over(np.zeros(0)), r"`values` must hold at least one"),
        "nan": (lambda: Estimate.over(np.array([1, np.nan])), r"must be finite\. Those at \[1\]"),
        "share": (lambda: random_subsets(5, 2, share=2, seed=0), r"`share` must be in \[0, 1\]"),
        "shapes": (
            lambda: linear_datamodeling_score(masks, two, np.zeros((4, 3))),
            r"`losses` \(m, q\)\. Got \(4, 3\), \(2, 3\) and \(4, 3\)",
        ),
        "constant": (
            lambda: linear_datamodeling_score(masks, two, np.ones((4, 2))),
            r"the summed scores of every query must vary\. Those of queries \[0, 1\] are all",
        ),
        "constant losses": (
            lambda: linear_datamodeling_score(np.eye(3, dtype=np.int8), np.eye(3), np.ones((3, 3))),
            r"the losses of every query must vary",
        ),
        "few subsets": (
            lambda: error_over_subsets(masks[:2], two, np.ones((2, 2))),
            r"number of subsets` must be at least 3",
        ),
        "one seed": (lambda: lds_ceiling(np.ones((1, 4, 2))), r"number of seeds` must be at least"),
        "drop": (lambda: quantile_drop(np.ones((2, 3)), np.ones(2)), r"each of 2 queries\. Got"),
        "left out": (
            lambda: leave_one_out_correlation(two, [0, 1, 2], np.ones((2, 2))),
            r"must be \(3, 2\), removed examples by queries\. Got \(2, 2\)",
        ),
        "lengths": (
            lambda: mislabel_detection(np.ones(2), members),
            r"must be of one length\. Got 2, 3\.",
        ),
        "no wrong": (
            lambda: mislabel_detection(np.ones(3), ~members),
            r"number of wrong labels` must be at least 2",
        ),
        "members": (
            lambda: subset_detection(two, members[:2]),
            r"`members` must be \(n,\) or \(q, n\).*Got \(2,\)",
        ),
        "all members": (
            lambda: subset_detection(two, members),
            r"members and other examples\. Queries \[0, 1\] have not",
        ),
        "recall": (
            lambda: recall_of_members(two, np.zeros((2, 3), bool)),
            r"number of members of every query` must be at least 1",
        ),
        "shortcut": (
            lambda: shortcut_detection(two, two[:1], members),
            r"of the same queries\. Got \(2, 3\) and \(1, 3\)",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_wrong_input_is_refused_with_the_reason(name: str) -> None:
    call, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        call()
