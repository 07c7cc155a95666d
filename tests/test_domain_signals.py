"""Signals of domains: each against an obviously correct slow way, and on known optima."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from projections import (
    SJLT,
    CausalLM,
    Embeddings,
    NonDeterministicError,
    NonFiniteError,
    Sketch,
    Task,
    run_pass,
    to_device,
)
from selection import (
    DGA,
    ODM,
    DoGE,
    DomainGradients,
    DoReMi,
    InBatchDGA,
    KMeans,
    MirrorDescent,
    OnlineMixture,
    OverDistributions,
    Products,
    RowDeck,
    cluster_centers,
    cosine_alignments,
    distribution_decks,
    importance_mixture,
    mean_norm_alignments,
    source_centers,
)
from selection.mixtures.in_batch import tokens_of

FLOAT64 = 1e-9  # sums of a few hundred products in float64
FLOAT32 = 1e-6  # products of the training batch are kept in float32
VOCABULARY = 23


class Point(nn.Module):
    """A model that is a point; an example is a centre, its loss half the squared distance."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, centers: Tensor) -> Tensor:
        return (self.position - centers).square().sum(-1) / 2


class Quadratic(Task):
    def losses(self, batch: Any) -> Tensor:
        return self.model(batch)


class TinyLM(nn.Module):
    """A language model with tied words, positions, a norm and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 6)
        self.places = nn.Embedding(8, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 12)
        self.drop = nn.Dropout(dropout)
        self.down = nn.Linear(12, 6, bias=False)
        self.head = nn.Linear(6, VOCABULARY, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.words(input_ids) + self.places(places[None])
        hidden = hidden + self.down(self.drop(self.up(self.norm(hidden)).tanh()))
        return self.head(hidden)


def language_task(seed: int = 0, dropout: float = 0.0) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(TinyLM(dropout).double())


def texts(count: int, seed: int, length: int = 7) -> list[dict[str, list[int]]]:
    drawn = np.random.default_rng(seed).integers(0, VOCABULARY, (count, length))
    return [{"input_ids": row} for row in drawn.tolist()]


DOMAINS = {"news": texts(5, 1), "code": texts(4, 2), "law": texts(6, 3)}
TARGET = texts(3, 4)


def flat_gradient(task: CausalLM, rows: list[Any], names: list[str] | None = None) -> np.ndarray:
    """The obvious way: one backward from the mean loss a token."""
    batch = task.collate(task.encode(rows))
    task.model.zero_grad()
    (task.losses(batch).sum() / sum(len(row["input_ids"]) - 1 for row in rows)).backward()
    found = [
        p.grad.flatten()
        for n, p in task.model.named_parameters()
        if p.grad is not None and (not names or n in names)
    ]
    task.model.zero_grad()
    return torch.cat(found).numpy()


def exact_products(task: CausalLM, layers: list[str] | None = None) -> Products:
    rows = {name: RowDeck(part, name=name, seed=0).draw(0, 3) for name, part in DOMAINS.items()}
    domains = np.stack([flat_gradient(task, part, layers) for part in rows.values()])
    target = RowDeck(TARGET, name="target", seed=0).draw(0, 3)
    return Products.of(domains, flat_gradient(task, target, layers))


def test_products_are_those_of_whole_gradients() -> None:
    task = language_task()
    expected = exact_products(task)
    found = DomainGradients(task, DOMAINS, TARGET, batch_size=3, seed=0).products(0)
    np.testing.assert_allclose(found.dots, expected.dots, rtol=FLOAT64)
    np.testing.assert_allclose(found.sq_norms, expected.sq_norms, rtol=FLOAT64)
    assert found.target_sq_norm == pytest.approx(expected.target_sq_norm, rel=FLOAT64)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_chosen_layers_give_the_products_of_their_gradients() -> None:
    task = language_task()
    gradients = DomainGradients(task, DOMAINS, TARGET, batch_size=3, layers=["up", "down"], seed=0)
    expected = exact_products(task, ["up.weight", "up.bias", "down.weight"])
    np.testing.assert_allclose(gradients.products(0).dots, expected.dots, rtol=FLOAT64)


def test_dropout_is_off_for_the_comparison_and_on_again_after() -> None:
    task = language_task(dropout=0.5)
    task.model.train()
    gradients = DomainGradients(task, DOMAINS, TARGET, batch_size=3, seed=0)
    np.testing.assert_array_equal(gradients.products(0).dots, gradients.products(0).dots)
    assert all(module.training for module in task.model.modules())


def test_dga_steps_along_the_cosines_of_gradients() -> None:
    task, rule = language_task(), MirrorDescent(step_size=2.0, average=0.5, floor=0.1)
    mixture = DGA(task, DOMAINS, TARGET, every=5, batch_size=3, rule=rule, seed=0)
    cosines = cosine_alignments(exact_products(task))
    assert isinstance(mixture, OnlineMixture)
    assert [step for step in range(12) if mixture.due(step)] == [4, 9]
    mixture.update(4)
    expected = rule.step(rule.begin(np.full(3, 1 / 3)), cosines).weights
    np.testing.assert_allclose(mixture.weights, expected, rtol=FLOAT64)
    np.testing.assert_allclose(mixture.history.columns["signal"][1], cosines, rtol=FLOAT64)
    assert mixture.history.ids.tolist() == [-1, 4]


def test_cosines_ignore_lengths_the_mean_norm_keeps_them_and_zero_moves_nothing() -> None:
    products = Products.of(np.array([[1.0, 0.0], [10.0, 0.0]]), np.array([3.0, 0.0]))
    np.testing.assert_allclose(cosine_alignments(products), [1, 1])
    np.testing.assert_allclose(mean_norm_alignments(products), [2 / 11, 20 / 11])
    zero = Products.of(np.zeros((2, 2)), np.array([3.0, 0.0]))
    for align in (cosine_alignments, mean_norm_alignments):
        np.testing.assert_array_equal(align(zero), 0)


def in_batch(task: CausalLM, *, rank: int | None = None, **settings: Any) -> InBatchDGA:
    return InBatchDGA(
        task, tuple(DOMAINS), TARGET, every=1, batch_size=3, rank=rank, seed=0, **settings
    )


def step_in_batch(mixture: InBatchDGA, rows: list[Any], domains: list[int]) -> np.ndarray:
    """Train on rows with a loss that is a mean over tokens, and return the signal."""
    task = mixture.task
    batch = to_device(task.collate(task.encode(rows)), task.device)
    logits = task.model(batch["input_ids"])[:, :-1]
    nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    ).backward()
    mixture.update(mixture.num_moves, domains=np.array(domains))
    return mixture.history.columns["signal"][-1]


def mixed_batch() -> tuple[list[Any], list[int]]:
    rows = {name: RowDeck(part, name=name, seed=0).draw(0, 3) for name, part in DOMAINS.items()}
    pairs = [(row, place) for place, part in enumerate(rows.values()) for row in part]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[at][0] for at in order], [pairs[at][1] for at in order]


def test_alignments_of_the_training_batch_are_those_of_separate_batches() -> None:
    task = language_task()
    expected = exact_products(task)
    mixture = in_batch(task)
    with mixture.watching():
        signal = step_in_batch(mixture, *mixed_batch())
    np.testing.assert_allclose(signal, expected.dots / expected.target_sq_norm, rtol=FLOAT32)


def test_watching_leaves_the_gradient_of_training_as_it_is() -> None:
    task = language_task()
    rows, domains = mixed_batch()
    expected = flat_gradient(task, rows)
    mixture = in_batch(task, rank=1)
    with mixture.watching():
        step_in_batch(mixture, rows, domains)
    found = torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
    np.testing.assert_allclose(found, expected, rtol=FLOAT64, atol=1e-15)
    assert not any(module._forward_hooks for module in task.model.modules())


def test_a_domain_is_scaled_to_its_own_tokens_whatever_its_share_of_the_batch() -> None:
    task = language_task()
    rows, domains = mixed_batch()
    twice = [*rows, *(row for row, place in zip(rows, domains, strict=True) if place == 0)]
    signals = []
    for batch, places in ((rows, domains), (twice, [*domains, 0, 0, 0])):
        mixture = in_batch(task)
        with mixture.watching():
            signals.append(step_in_batch(mixture, batch, places))
    np.testing.assert_allclose(signals[1], signals[0], rtol=FLOAT32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"labels": [[1, 2, 3], [-100, 4, -100]]}, [2, 1]),
        ({"labels": [0, 1], "attention_mask": [[1, 1, 1], [1, 0, 0]]}, [1, 1]),
        ({"labels": [[0.5], [1.5]]}, [1, 1]),
        ({"labels": [[0.0, 1.0], [1.0, 0.0]]}, [1, 1]),
        ({"attention_mask": [[1, 1, 1], [1, 1, 0]]}, [2, 1]),
        ({"inputs": [[1.0], [2.0]]}, [1, 1]),
    ],
    ids=["tokens", "classes", "numbers", "several numbers", "no labels", "no tokens"],
)
def test_tokens_are_counted_where_the_loss_is_a_mean_over_tokens(
    given: dict[str, Any], expected: list[int]
) -> None:
    arguments = {name: torch.tensor(values) for name, values in given.items()}
    assert tokens_of((), arguments).tolist() == expected


def test_a_domain_that_no_batch_held_keeps_its_weight() -> None:
    mixture = in_batch(language_task(), rule=MirrorDescent(step_size=3.0))
    rows, domains = mixed_batch()
    kept = [at for at, place in enumerate(domains) if place != 1]
    with mixture.watching():
        step_in_batch(mixture, [rows[at] for at in kept], [domains[at] for at in kept])
    assert mixture.weights[1] == pytest.approx(1 / 3)
    assert np.isnan(mixture.history.columns["signal"][-1][1])


def test_micro_batches_of_a_step_count_as_one() -> None:
    task = language_task()
    rows, domains = mixed_batch()
    whole = in_batch(task)
    with whole.watching():
        expected = step_in_batch(whole, rows, domains)
    parts = in_batch(task, loss_factor=1.0)
    with parts.watching():
        for half in (rows[:4], rows[4:]):
            ids = task.collate(task.encode(half))["input_ids"]
            logits = task.model(ids)[:, :-1]
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        parts.update(0, domains=np.array(domains))
    np.testing.assert_allclose(parts.history.columns["signal"][-1], expected, rtol=FLOAT32)


def test_a_low_rank_keeps_most_of_the_product_and_full_rank_all_of_it() -> None:
    task = language_task()
    signals = []
    for rank in (None, 6, 2):
        mixture = in_batch(task, rank=rank)
        with mixture.watching():
            signals.append(step_in_batch(mixture, *mixed_batch()))
    np.testing.assert_allclose(signals[1], signals[0], rtol=1e-6)
    assert np.corrcoef(signals[2], signals[0])[0, 1] > 0.9


def test_watching_works_with_evaluations_in_between() -> None:
    task = language_task()
    mixture = in_batch(task)
    rows, domains = mixed_batch()
    with mixture.watching():
        with torch.no_grad():
            task.losses(task.collate(task.encode(TARGET)))
        DGA(task, DOMAINS, TARGET, batch_size=2, seed=0).update(0)
        signal = step_in_batch(mixture, rows, domains)
    assert np.isfinite(signal).all()


def transformer() -> GPT2LMHeadModel:
    """A model of Hugging Face: Conv1D, tied words, positions for the whole batch."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().train()


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_alignments_of_a_transformer_are_exact_with_and_without_checkpointing(
    reentrant: bool | None,
) -> None:
    model = transformer()
    task = CausalLM(model)
    expected = DomainGradients(task, DOMAINS, TARGET, batch_size=3, seed=0).products(0)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    mixture = in_batch(task)
    rows, domains = mixed_batch()
    ids = task.collate(task.encode(rows))["input_ids"]
    with mixture.watching():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        mixture.update(0, domains=np.array(domains))
    signal = mixture.history.columns["signal"][-1]
    np.testing.assert_allclose(signal, expected.dots / expected.target_sq_norm, rtol=FLOAT32)


def test_batch_norm_that_mixes_examples_is_refused() -> None:
    class Normed(Quadratic):
        pass

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    task = Normed(model)
    task.losses = lambda batch: model(batch).sum(1)
    mixture = InBatchDGA(task, ("a",), [torch.ones(2)] * 2, batch_size=2, seed=0)
    with mixture.watching(), pytest.raises(NonDeterministicError, match=r"The layer '1' is not"):
        model(torch.ones(3, 2))


def test_domains_that_do_not_fit_the_batch_are_refused() -> None:
    mixture = in_batch(language_task())
    rows, domains = mixed_batch()
    with mixture.watching():
        with pytest.raises(ValueError, match=r"Got 3 for 9 examples"):
            step_in_batch(mixture, rows, domains[:3])
        with pytest.raises(ValueError, match=r"`domains` must be in \[0, 2\]"):
            step_in_batch(mixture, rows, [3] * 9)
        with pytest.raises(ValueError, match=r"Train inside `with mixture.watching\(\):`"):
            mixture.update(0, domains=np.array([0]))
    with pytest.raises(ValueError, match=r"`domains` must be given to `update`"):
        ODM(("a", "b")).update(0)


CENTERS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
OPTIMUM = np.array([0.5, 0.3, 0.2])


def quadratic_mixtures() -> dict[str, Callable[[Task], Any]]:
    domains = {f"at {row.tolist()}": [row, row] for row in CENTERS}
    target = [torch.as_tensor(OPTIMUM) @ CENTERS] * 2
    plain = {"every": 1, "batch_size": 1, "alignment": "plain", "seed": 0}
    rule = MirrorDescent(step_size=0.02, average=1.0)
    averaged = MirrorDescent(step_size=0.1, average=0.2)
    return {
        "dga": lambda task: DGA(task, domains, target, rule=rule, **plain),
        "averaged": lambda task: DGA(task, domains, target, rule=averaged, **plain),
        "doge": lambda task: DoGE(task, domains, target, every=1, batch_size=1, rule=rule, seed=0),
    }


@pytest.mark.parametrize("name", ["dga", "averaged", "doge"])
def test_on_quadratics_the_mixture_converges_to_the_known_optimum(name: str) -> None:
    model = Point([1.0, 2.0])
    mixture = quadratic_mixtures()[name](Quadratic(model))
    for step in range(1500):
        with torch.no_grad():
            mean = torch.as_tensor(mixture.weights) @ CENTERS
            model.position.lerp_(mean, 0.2)
        mixture.update(step)
    np.testing.assert_allclose(mixture.weights, OPTIMUM, atol=0.01)


def test_zero_gradients_leave_the_mixture_where_it_is() -> None:
    domains = {"a": [torch.zeros(2).double()], "b": [torch.zeros(2).double()]}
    task = Quadratic(Point([0.0, 0.0]))
    settings = {"every": 1, "batch_size": 1, "weights": [0.7, 0.3], "seed": 0}
    rule = MirrorDescent()
    for mixture in (
        DGA(task, domains, domains["a"], rule=rule, **settings),
        DoGE(task, domains, rule=rule, **settings),
    ):
        mixture.update(0)
        np.testing.assert_allclose(mixture.weights, [0.7, 0.3])


def test_a_gradient_that_is_not_finite_is_refused_by_the_name_of_its_domain() -> None:
    bad = torch.full((2,), torch.nan).double()
    task = Quadratic(Point([1.0, 0.0]))
    mixture = DGA(
        task, {"good": [torch.zeros(2).double()], "bad": [bad]}, [bad * 0 + 1], batch_size=1, seed=0
    )
    with pytest.raises(NonFiniteError, match=r"'bad': nan"):
        mixture.update(0)


def test_a_mixture_is_equivariant_to_the_order_of_its_domains() -> None:
    found = []
    for names in (list(DOMAINS), list(DOMAINS)[::-1]):
        mixture = DGA(language_task(), {n: DOMAINS[n] for n in names}, TARGET, batch_size=3, seed=0)
        mixture.update(0)
        found.append(dict(zip(mixture.names, mixture.weights.tolist(), strict=True)))
    assert found[0] == pytest.approx(found[1], rel=FLOAT64)


def test_doge_leaves_a_domain_out_of_its_own_sum() -> None:
    task = language_task()
    mixture = DoGE(task, DOMAINS, batch_size=3, rule=MirrorDescent(step_size=0.1), seed=0)
    rows = [RowDeck(part, name=name, seed=0).draw(0, 3) for name, part in DOMAINS.items()]
    gradients = np.stack([flat_gradient(task, part) for part in rows])
    norm = np.linalg.norm(gradients, axis=1).mean()
    expected = [(gradients.sum(0) - own) @ own / norm for own in gradients]
    mixture.update(0)
    np.testing.assert_allclose(mixture.history.columns["signal"][1], expected, rtol=FLOAT64)
    np.testing.assert_allclose(mixture.result.weights, mixture.weights)


def doremi(rule: MirrorDescent | None = None) -> DoReMi:
    return DoReMi(
        language_task(0),
        language_task(1),
        tuple(DOMAINS),
        rule=rule or MirrorDescent(floor=1e-3),
    )


def test_doremi_weighs_by_the_excess_of_each_token_over_the_reference() -> None:
    mixture = doremi()
    rows, domains = mixed_batch()
    rows = [{"input_ids": row["input_ids"][: 4 + at % 4]} for at, row in enumerate(rows)]
    excess: list[list[float]] = [[], [], []]
    losses: list[list[Tensor]] = [[], [], []]
    for row, place in zip(rows, domains, strict=True):
        ids = torch.tensor([row["input_ids"]])
        own, reference = (
            -task.model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            for task in (mixture._task, mixture._reference)
        )
        excess[place] += (own - reference).clamp(min=0).tolist()
        losses[place] += list(own)
    signal = np.array([np.mean(part) for part in excess])
    stepped = np.exp(signal) / np.exp(signal).sum()
    weights = (1 - 1e-3) * stepped + 1e-3 / 3
    batch = mixture._task.collate(mixture._task.encode(rows))
    loss = mixture.loss(0, batch, np.array(domains))
    np.testing.assert_allclose(mixture.weights, weights, rtol=FLOAT64)
    shares = [w * 3 * len(part) for w, part in zip(weights, losses, strict=True)]
    sums = [w * 3 * torch.stack(part).sum().item() for w, part in zip(weights, losses, strict=True)]
    assert loss.item() == pytest.approx(sum(sums) / sum(shares), rel=FLOAT64)
    loss.backward()
    assert all(p.grad is None for p in mixture._reference.model.parameters())


def test_a_batch_without_a_mask_has_no_padding() -> None:
    task, rows = language_task(), texts(2, 5)
    batch = task.collate(task.encode(rows))
    bare = {name: batch[name] for name in ("input_ids", "labels")}
    assert torch.equal(task.losses(bare), task.losses(batch))


def test_doremi_keeps_the_last_signal_of_an_absent_domain() -> None:
    mixture = doremi()
    rows, domains = mixed_batch()
    batch = mixture._task.collate(mixture._task.encode(rows))
    mixture.loss(0, batch, np.array(domains))
    only = mixture._task.collate(mixture._task.encode(DOMAINS["news"]))
    mixture.loss(1, only, np.zeros(5, dtype=int))
    first, second = mixture.history.columns["signal"][1:]
    np.testing.assert_array_equal(second[1:], first[1:])
    assert second[0] != first[0]


def test_a_model_cannot_be_its_own_reference() -> None:
    task = language_task()
    with pytest.raises(ValueError, match=r"`reference` must be another model"):
        DoReMi(task, task, ("a",))


def test_odm_is_exp3_as_published() -> None:
    mixture, count, smoothing = ODM(("a", "b", "c"), smoothing=0.9), 3, 0.9
    random, rewards, weights = np.random.default_rng(0), np.zeros(3), np.full(3, 1 / 3)
    explored = 1 / 3
    for step in range(50):
        domain, loss = int(random.integers(3)), float(random.random() * 4)
        mixture.update(step, domains=np.array([domain]), losses=np.array([loss]))
        rewards[domain] = smoothing * rewards[domain] + (1 - smoothing) * loss / weights[domain]
        before, t = explored, step + 1
        explored = min(1 / count, np.sqrt(np.log(count) / (count * t)))
        # At the first move the rate of the step before is that of the start.
        exponent = np.exp(before * rewards)
        weights = (1 - count * explored) * exponent / exponent.sum() + explored
        np.testing.assert_allclose(mixture.weights, weights, rtol=1e-10)


def test_odm_averages_losses_between_moves_and_refuses_what_is_not_finite() -> None:
    mixture = ODM(("a", "b"), every=2)
    mixture.update(0, domains=np.array([0, 0]), losses=np.array([1.0, 2.0]))
    assert mixture.num_moves == 0 and mixture.due(0)
    mixture.update(1, domains=np.array([0]), losses=np.array([6.0]))
    assert mixture.history.columns["signal"][1][0] == pytest.approx(3)
    mixture.update(2, domains=np.array([1]), losses=np.array([np.inf]))
    with pytest.raises(NonFiniteError, match=r"'b': inf"):
        mixture.update(3, domains=np.array([0]), losses=np.array([1.0]))


def test_importance_sampling_is_the_histogram_of_the_target() -> None:
    random = np.random.default_rng(0)
    sources = {name: random.normal(8 * at, 1, (30, 2)) for at, name in enumerate("abc")}
    target = np.concatenate([sources["a"][:6], sources["c"][:2]])
    mixture = importance_mixture(source_centers(sources), target)
    np.testing.assert_allclose(mixture.weights, [0.75, 0, 0.25])
    smoothed = importance_mixture(source_centers(sources), target, pseudo_count=1)
    np.testing.assert_allclose(smoothed.weights, np.array([7, 1, 3]) / 11)
    rows = Embeddings(np.concatenate([*sources.values()]).astype(np.float32))
    clusters = cluster_centers(KMeans(num_clusters=3, seed=0).fit(rows))
    distances = np.square(target[:, None] - clusters.points).sum(-1)
    counts = [(distances.argmin(1) == place).sum() for place in range(3)]
    np.testing.assert_allclose(importance_mixture(clusters, target).weights, np.array(counts) / 8)


def test_domains_may_be_clusters_of_projected_gradients() -> None:
    # Two kinds of text without a token in common.
    low, high = (
        [{"input_ids": [start + token % 2 for token in row["input_ids"]]} for row in texts(8, 1)]
        for start in (0, 12)
    )
    columns = [Sketch(SJLT(num_dims=32, seed=0), "gradients")]
    task = language_task()
    task.model.eval()
    vectors = run_pass(task, [*low, *high], columns).columns["gradients"]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    clusters = KMeans(num_clusters=2, spherical=True, seed=0).fit(Embeddings(unit))
    centers = cluster_centers(clusters, unit_length=True)
    places = centers.nearest(vectors)
    assert len(set(places[:8])) == len(set(places[8:])) == 1 and places[0] != places[8]
    mixture = importance_mixture(centers, vectors[:3])
    assert mixture.weights[places[0]] == 1


def test_directions_count_where_rows_have_unit_length_and_nan_is_refused() -> None:
    sources = {"x": np.array([[1.0, 0.0], [5.0, 0.1]]), "y": np.array([[0.0, 2.0]])}
    centers = source_centers(sources, unit_length=True)
    np.testing.assert_array_equal(centers.nearest(np.array([[0.1, 0.0], [7.0, 9.0]])), [0, 1])
    with pytest.raises(NonFiniteError, match=r"1 of 2 are not, such as rows \[1\]"):
        importance_mixture(centers, np.array([[1.0, 0.0], [np.nan, 0.0]]))


def test_distributions_draw_their_domains_and_weigh_them() -> None:
    distributions = [[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]
    decks = distribution_decks(DOMAINS, ("one", "two"), distributions, seed=0)
    drawn = decks["two"].draw(0, 400)
    law = sum(row in DOMAINS["law"] for row in drawn) / 400
    assert law == pytest.approx(0.9, abs=0.06)  # four standard deviations
    assert decks["one"].draw(5, 3) == decks["one"].draw(0, 8)[5:]
    inner = DGA(language_task(), decks, TARGET, batch_size=2, seed=0)
    mixture = OverDistributions(inner, tuple(DOMAINS), distributions)
    assert isinstance(mixture, OnlineMixture)
    mixture.update(99)
    np.testing.assert_allclose(mixture.weights, inner.weights @ np.array(distributions))
    with pytest.raises(ValueError, match=r"must have the shape \(2, 3\). Got \(1, 3\)"):
        OverDistributions(inner, tuple(DOMAINS), distributions[:1])


def test_a_deck_gives_every_row_once_before_any_comes_again() -> None:
    deck = RowDeck(list("abcde"), name="letters", seed=0)
    drawn = deck.draw(0, 15)
    assert all(sorted(drawn[at : at + 5]) == list("abcde") for at in (0, 5, 10))
    assert drawn[:5] != drawn[5:10] or drawn[5:10] != drawn[10:]
    assert drawn != RowDeck(list("abcde"), name="letters", seed=1).draw(0, 15)
    with pytest.raises(ValueError, match=r"`empty` must hold at least one"):
        RowDeck([], name="empty", seed=0)


def resumable() -> dict[str, Callable[[], Any]]:
    domains = {f"at {at}": [row, row + 1, row + 2] for at, row in enumerate(CENTERS)}

    def task() -> Task:
        return Quadratic(Point([1.0, 2.0]))

    return {
        "dga": lambda: DGA(task(), domains, domains["at 1"], every=1, batch_size=2, seed=0),
        "doge": lambda: DoGE(task(), domains, batch_size=2, seed=0),
        "odm": lambda: ODM(tuple(domains), every=2),
    }


@pytest.mark.parametrize("name", ["dga", "doge", "odm"])
def test_a_mixture_that_stops_and_goes_on_has_the_same_weights(name: str) -> None:
    def run(mixture: Any, steps: range) -> Any:
        for step in steps:
            losses = np.array([1.0 + step % 3, 2.0])
            mixture.update(step, domains=np.array([step % 3, 0]), losses=losses)
        return mixture

    whole = run(resumable()[name](), range(7))
    first = run(resumable()[name](), range(3))
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second = resumable()[name]()
    second.load_state_dict(state)
    run(second, range(3, 7))
    np.testing.assert_array_equal(second.weights, whole.weights)
    np.testing.assert_array_equal(second.history.columns["signal"], whole.history.columns["signal"])
