"""A pass gives each row its numbers, however it is cut, and refuses before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import cases
import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gradients_one_by_one
from torch import Tensor, nn

from projections import (
    SJLT,
    Accumulator,
    Batch,
    Classification,
    DataError,
    FolderCheckpoint,
    Gradient,
    GradientNorm,
    GradientStore,
    Labels,
    NonFiniteError,
    PassSettings,
    QueryTask,
    Regression,
    Rows,
    Sketch,
    Statistic,
    StoreMismatchError,
    StoreWriter,
    Table,
    Task,
    as_ids,
    as_rows,
    find_components,
    fingerprint_model,
    flatten_batches,
    run_pass,
    show_progress,
)
from projections.pass_settings import pack

SUMS = 1e-10  # float64 sums in another order
COLUMNS = ("loss", "grad_norm", "sketch")


@dataclass
class Moments:
    """The sum of all gradients and of their squares, by component."""

    name: str = "moments"
    sums: dict[str, Tensor] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)

    def begin(self, batch: Batch) -> None:
        self.seen += batch.ids.tolist()

    def observe(self, gradient: Gradient) -> None:
        for name, values in gradient.materialize().items():
            flat = values.flatten(1)
            both = torch.stack([flat.sum(0), flat.square().sum(0)])
            self.sums[name] = self.sums[name] + both if name in self.sums else both

    def end(self, batch: Batch) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return dict(self.sums)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.sums = dict(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        for name, values in state.items():
            self.sums[name] = self.sums[name] + values if name in self.sums else values


def walk(task: Task, data: Any, **settings: Any) -> tuple[Table, Moments]:
    moments = Moments()
    columns = [Statistic("loss"), GradientNorm(), Sketch(SJLT(num_dims=16, seed=0))]
    table = run_pass(task, data, columns, accumulators=[moments], settings=PassSettings(**settings))
    return table, moments


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1},
        {"batch_size": 3},
        {"max_tokens": 8},
        {"max_tokens": 1},
        {"shard_size": 1},
        {"shard_size": 4, "batch_size": 2, "max_tokens": 10},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
@pytest.mark.parametrize("name", ["gpt2-tied", "convnet-zeros"])
def test_results_do_not_depend_on_how_the_data_is_cut(name: str, settings: dict[str, int]) -> None:
    task, examples = cases.build(name, 7)
    expected, expected_moments = walk(task, examples)
    table, moments = walk(task, examples, **settings)
    np.testing.assert_array_equal(table.ids, np.arange(7))
    for column in COLUMNS:
        np.testing.assert_allclose(table.columns[column], expected.columns[column], rtol=SUMS)
    assert sorted(moments.seen) == list(range(7))
    for parameter, values in expected_moments.sums.items():
        torch.testing.assert_close(moments.sums[parameter], values, rtol=SUMS, atol=SUMS)


def test_results_follow_their_rows_into_another_order() -> None:
    task, examples = cases.build("gpt2-tied", 6)
    rows = [{**example, "id": f"row {row}"} for row, example in enumerate(examples)]
    expected, _ = walk(task, rows)
    order = [3, 1, 5, 0, 2, 4]
    table, _ = walk(task, [rows[row] for row in order], shard_size=4)
    assert table.ids.tolist() == [f"row {row}" for row in order]
    for column in COLUMNS:
        np.testing.assert_allclose(
            table.columns[column], expected.columns[column][order], rtol=SUMS
        )


def test_accumulators_see_the_gradients_of_autograd() -> None:
    task, examples = cases.build("gpt2-tied", 5)
    _, moments = walk(task, examples, batch_size=2)
    for name, values in gradients_one_by_one(task, examples).items():
        flat = values.flatten(1)
        both = torch.stack([flat.sum(0), flat.square().sum(0)])
        torch.testing.assert_close(moments.sums[name], both, rtol=SUMS, atol=SUMS)


def test_parts_merge_to_the_whole() -> None:
    task, examples = cases.build("mlp-layernorm-subclass", 6)
    _, whole = walk(task, examples)
    _, first = walk(task, examples[:2])
    _, second = walk(task, examples[2:])
    first.merge(second.state())
    for name, values in whole.sums.items():
        torch.testing.assert_close(first.sums[name], values, rtol=SUMS, atol=SUMS)


def test_statistics_need_no_backward() -> None:
    task, examples = cases.build("mlp-layernorm-subclass", 4)
    table = run_pass(task, examples, [Statistic("loss"), Statistic("el2n"), Statistic("margin")])
    inputs, labels = task.collate(examples)
    probabilities = task.model(inputs).softmax(-1).detach()
    errors = probabilities - torch.eye(3, dtype=torch.float64)[labels]
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    np.testing.assert_allclose(table.columns["loss"], -own.log(), rtol=SUMS)
    np.testing.assert_allclose(table.columns["el2n"], errors.norm(dim=1), rtol=SUMS)
    np.testing.assert_allclose(table.columns["margin"], (own / (1 - own)).log(), rtol=SUMS)


def test_the_loss_of_a_text_is_the_sum_over_its_tokens() -> None:
    task, examples = cases.build("gpt2-tied", 5)
    table = run_pass(task, examples, [Statistic("loss"), Statistic("num_tokens")])
    for row, example in enumerate(examples):
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            mean = task.model(input_ids=ids, labels=ids).loss
        assert table.columns["num_tokens"][row] == len(example["input_ids"]) - 1
        expected = float(mean) * table.columns["num_tokens"][row]
        assert table.columns["loss"][row] == pytest.approx(expected, rel=1e-6)


def test_a_statistic_that_the_task_lacks_is_named() -> None:
    task, examples = cases.build("linear-regression", 2)
    with pytest.raises(ValueError, match=r"statistic 'el2n'\. It computes \['loss'\]"):
        run_pass(task, examples, [Statistic("el2n")])


def test_two_columns_of_one_name_are_refused() -> None:
    task, examples = cases.build("linear-regression", 2)
    with pytest.raises(ValueError, match=r"`columns` must have different names\. Got \['loss', "):
        run_pass(task, examples, [Statistic("loss"), Statistic("loss")])


def test_a_model_without_parameters_has_losses() -> None:
    data = [(torch.ones(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(2))]
    table = run_pass(Regression(nn.Identity()), data, [Statistic("loss")])
    assert table.columns["loss"].tolist() == [1.0, 0.0]


def test_the_measurement_of_a_query_stands_in_for_the_loss() -> None:
    class Margin(Classification):
        def measurements(self, batch: Any) -> Tensor:
            return self.statistics(batch)["margin"]

    task, examples = cases.build("mlp-layernorm-subclass", 3)
    task = Margin(task.model)
    table = run_pass(QueryTask(task), examples, [Statistic("loss")])
    expected = run_pass(task, examples, [Statistic("margin")])
    np.testing.assert_allclose(table.columns["loss"], expected.columns["margin"])


# Drawn labels.


def test_what_is_drawn_for_a_row_does_not_depend_on_the_batch() -> None:
    task, examples = cases.build("gpt2-tied", 5)
    rows = [{**example, "id": f"row {row}"} for row, example in enumerate(examples)]
    labels = Labels(kind="sampled", num_samples=2, seed=1, purpose="test")

    def draw(data: list[Any], **settings: Any) -> Moments:
        moments = Moments()
        run_pass(
            task, data, accumulators=[moments], labels=labels, settings=PassSettings(**settings)
        )
        return moments

    whole, cut = draw(rows), draw(rows[::-1], batch_size=2, shard_size=3)
    for name, values in whole.sums.items():
        torch.testing.assert_close(cut.sums[name], values, rtol=SUMS, atol=SUMS)


def test_the_exact_fisher_is_the_mean_over_drawn_labels() -> None:
    task, examples = cases.build("mlp-layernorm-subclass", 3)

    def fisher(**settings: Any) -> Tensor:
        moments = Moments()
        run_pass(task, examples, accumulators=[moments], labels=Labels(**settings))
        return torch.cat([values[1] for values in moments.sums.values()])

    exact = fisher(kind="exact")
    sampled = fisher(kind="sampled", num_samples=300)
    # 300 draws of three labels: the root mean square error is a few per cent.
    assert float((sampled - exact).norm() / exact.norm()) < 0.15


def test_columns_are_refused_when_labels_are_drawn() -> None:
    task, examples = cases.build("mlp-layernorm-subclass", 2)
    with pytest.raises(ValueError, match="`columns` must be empty when labels are drawn"):
        run_pass(task, examples, [GradientNorm()], labels=Labels(kind="sampled"))


# Packing.


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    batch_size=st.integers(1, 8),
    max_tokens=st.none() | st.integers(1, 100),
)
def test_packs_hold_every_example_once_and_keep_their_limits(
    sizes: list[int], batch_size: int, max_tokens: int | None
) -> None:
    groups = list(pack(sizes, PassSettings(batch_size=batch_size, max_tokens=max_tokens)))
    assert sorted(p for group in groups for p in group) == list(range(len(sizes)))
    for group in groups:
        assert 1 <= len(group) <= batch_size
        area = len(group) * max(sizes[p] for p in group)
        assert max_tokens is None or area <= max_tokens or len(group) == 1


@pytest.mark.parametrize("name", ["batch_size", "shard_size", "max_tokens"])
def test_a_setting_out_of_range_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1\. Got 0\."):
        PassSettings(**cast(dict[str, Any], {name: 0}))


# Trouble.


def spoiled(num: int, bad: list[int]) -> list[Any]:
    rows = [{"id": f"r{row}", "x": torch.ones(3), "y": torch.ones(2)} for row in range(num)]
    for row in bad:
        rows[row]["x"] = torch.tensor([1.0, torch.nan, 1.0])
    return rows


class ByName(Regression):
    def losses(self, batch: Any) -> Tensor:
        return super().losses((batch["x"], batch["y"]))


def test_a_loss_that_is_nan_is_named_by_its_id_and_earlier_shards_are_kept(tmp_path) -> None:
    writer = StoreWriter(tmp_path / "store", {}, num_rows=9)
    columns = [Sketch(SJLT(num_dims=4, seed=0), "sketch"), GradientNorm()]
    with pytest.raises(NonFiniteError, match=r"every loss must be finite\. 1 of 3.*ids: \['r7'\]"):
        run_pass(
            ByName(nn.Linear(3, 2)),
            spoiled(9, [7]),
            columns,
            settings=PassSettings(shard_size=3),
            sink=writer,
        )
    store = GradientStore.open(tmp_path / "store", allow_unfinished=True)
    assert store.ids.tolist() == [f"r{row}" for row in range(6)]


def test_a_first_row_that_is_nan_is_named_too() -> None:
    with pytest.raises(NonFiniteError, match=r"2 of 4.*ids: \['r0', 'r1'\]\. Look at these rows"):
        run_pass(ByName(nn.Linear(3, 2)), spoiled(4, [0, 1]), [GradientNorm()])


def test_many_bad_rows_are_counted_and_ten_are_named() -> None:
    with pytest.raises(NonFiniteError, match=r"30 of 30.*'r9'\] \.\.\."):
        run_pass(ByName(nn.Linear(3, 2)), spoiled(30, list(range(30))), [Statistic("loss")])


def test_shards_that_a_sink_has_are_not_computed_again(tmp_path) -> None:
    class Counting(Regression):
        rows = 0

        def losses(self, batch: Any) -> Tensor:
            self.rows += len(batch[0])
            return super().losses(batch)

    data = [(torch.ones(3), torch.ones(2)) for _ in range(6)]
    settings = PassSettings(shard_size=2)
    task = Counting(nn.Linear(3, 2))

    def sink() -> StoreWriter:
        return StoreWriter(tmp_path, {}, num_rows=6)

    run_pass(task, data, [Statistic("loss")], settings=settings, sink=sink())
    before, moments = task.rows, Moments()
    run_pass(task, data, [Statistic("loss")], settings=settings, sink=sink())
    assert task.rows == before
    run_pass(
        task, data, [Statistic("loss")], settings=settings, sink=sink(), accumulators=[moments]
    )
    assert moments.seen == [0, 1, 0, 1, 2, 3, 4, 5][2:]


def test_a_pass_killed_between_rows_and_checkpoint_counts_every_shard_once(tmp_path) -> None:
    task, examples = cases.build("linear-regression", 6)
    settings, (_, whole) = PassSettings(shard_size=2), walk(*cases.build("linear-regression", 6))

    class Dying(FolderCheckpoint):
        def save(self, shard: int, accumulators: Sequence[Accumulator]) -> None:
            if shard == 1:
                raise KeyboardInterrupt
            super().save(shard, accumulators)

    def run(kind: type[FolderCheckpoint], rows: str) -> Moments:
        moments = Moments()
        run_pass(
            task,
            examples,
            [Statistic("loss")],
            accumulators=[moments],
            settings=settings,
            sink=StoreWriter(tmp_path / rows, {}, num_rows=6),
            checkpoint=kind(tmp_path / "state", {}),
        )
        return moments

    with pytest.raises(KeyboardInterrupt):
        run(Dying, "rows")
    with pytest.raises(StoreMismatchError, match=r"It covers 1 shards and there are 0"):
        run(FolderCheckpoint, "other rows")
    moments = run(FolderCheckpoint, "rows")
    for name, values in whole.sums.items():
        torch.testing.assert_close(moments.sums[name], values, rtol=SUMS, atol=SUMS)


def test_progress_is_shown_in_examples() -> None:
    moves: list[float] = []

    class Bar:
        def update(self, n: float | None = 1) -> None:
            moves.append(n or 0)

        def close(self) -> None:
            moves.append(-1)

    opened: list[Any] = []

    def opener(*arguments: Any) -> Bar:
        opened.append(arguments)
        return Bar()

    task, examples = cases.build("linear-regression", 5)
    with show_progress(opener):
        run_pass(task, examples, [Statistic("loss")], settings=PassSettings(shard_size=2))
    assert opened == [("pass", 5, 0, "examples")]
    assert moves == [2, 2, 1, -1]


# Rows.


def test_ids_are_positions_numbers_or_text() -> None:
    assert Rows([1.0, 2.0]).ids.tolist() == [0, 1]
    assert Rows([{"id": 7}, {"id": 3}]).ids.tolist() == [7, 3]
    assert Rows([{"id": "b"}, {"id": "a"}]).ids.tolist() == ["b", "a"]
    assert Rows([{"id": 1, "key": 9}], id_column="key").ids.tolist() == [9]
    assert Rows(datasets.Dataset.from_dict({"id": ["x", "y"]})).ids.tolist() == ["x", "y"]
    assert as_ids([np.int32(4), 5], "ids").dtype == np.int64


def test_ids_that_are_tensors_are_numbers() -> None:
    assert Rows([{"id": torch.tensor(7)}, {"id": torch.tensor(3)}]).ids.tolist() == [7, 3]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1], r"must hold each id once\. Repeated: \[1\]"),
        (["a", None], r"must hold an id in every row\. Row 1 has none"),
    ],
    ids=["repeated", "missing"],
)
def test_ids_that_do_not_identify_are_refused(ids: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ = Rows([{"id": row_id} for row_id in ids]).ids


def test_an_id_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"must have the column 'key'"):
        _ = Rows([{"id": 1}], id_column="key").ids


def test_a_loader_is_refused() -> None:
    loader = torch.utils.data.DataLoader([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Got a DataLoader\. Pass its `\.dataset`"):
        as_rows(loader)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (iter([1]), "list_iterator"),
        ("train.jsonl", "str"),
        ({"x": [1], "y": [2]}, "dict"),
        (datasets.DatasetDict(), "DatasetDict"),
    ],
    ids=["iterator", "path", "mapping", "splits"],
)
def test_what_has_no_rows_is_refused_by_its_type(data: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"Got {name}"):
        as_rows(data)


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`data` must hold at least one example\. Got none"):
        run_pass(Classification(nn.Linear(4, 3)), [], [GradientNorm()])


def test_fingerprints_change_with_the_data_and_with_nothing_else() -> None:
    class Picture:
        """Stands for objects whose text holds their address, as images do."""

        def __init__(self, value: int) -> None:
            self.value = value

        def tobytes(self) -> bytes:
            return bytes([self.value])

    wide = np.zeros(5000)
    wide[2500] = 1
    pairs = [
        ([(torch.ones(2), 0)], [(torch.zeros(2), 0)]),
        ([{"id": 1}], [{"id": 2}]),
        (["a", "b"], ["b", "a"]),
        ([np.zeros(5000)], [wide]),
        ([Picture(1)], [Picture(2)]),
    ]
    for first, second in pairs:
        assert Rows(first).fingerprint != Rows(second).fingerprint
    assert Rows([Picture(1)]).fingerprint == Rows([Picture(1)]).fingerprint


@pytest.mark.parametrize("kind", ["tuples", "mappings", "lists"])
def test_ready_made_batches_are_flattened_into_rows(kind: str) -> None:
    inputs, labels = torch.arange(10.0).view(5, 2), torch.arange(5)
    parts = [slice(2), slice(2, 5)]
    if kind == "mappings":
        rows = flatten_batches([{"x": inputs[part], "y": labels[part]} for part in parts])
        assert [int(row["y"]) for row in rows] == [0, 1, 2, 3, 4]
    else:
        make = tuple if kind == "tuples" else list
        rows = flatten_batches([make((inputs[part], labels[part])) for part in parts])
        assert [int(label) for _, label in rows] == [0, 1, 2, 3, 4]
    assert len(rows) == 5


def _write_in_place(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.mul_(2)


def _write_behind_the_counter(model: nn.Linear) -> None:
    model.weight.data.mul_(2)


def _replace(model: nn.Linear) -> None:
    model.weight = nn.Parameter(model.weight.detach() * 2)


def _load(model: nn.Linear) -> None:
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [_write_in_place, _write_behind_the_counter, _replace, _load])
def test_the_fingerprint_of_a_model_is_remembered_until_a_weight_changes(change: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = fingerprint_model(model)
    assert fingerprint_model(model) == before
    change(model)
    assert fingerprint_model(model) != before


def test_a_task_is_compared_with_single_examples_once_and_again_in_another_mode() -> None:
    calls = []

    class Watched(Classification):
        def losses(self, batch: Any) -> Tensor:
            calls.append(len(batch[1]))
            return super().losses(batch)

        def statistics(self, batch: Any) -> Mapping[str, Tensor]:
            return {"loss": self.losses(batch)}

    data = [(torch.ones(2), 0), (torch.zeros(2), 1)]
    task = Watched(nn.Sequential(nn.Linear(2, 3), nn.Identity()).eval())
    counts = []
    for training in (False, False, True):
        task.model[1].train(training)  # pyright: ignore[reportIndexIssue]
        calls.clear()
        run_pass(task, data, [GradientNorm()])
        counts.append(len(calls))
    assert counts[1] == 1 < counts[0] == counts[2]


def test_layers_of_a_pass_can_be_chosen() -> None:
    task, examples = cases.build("gpt2-tied", 3)
    layers = ("*.mlp.*",)
    table = run_pass(task, examples, [GradientNorm()], settings=PassSettings(layers=layers))
    grads = gradients_one_by_one(task, examples)
    names = {
        p.name
        for c in find_components(task.model, layers).components.values()
        for p in c.parameters
    }
    assert len(names) == 8
    squares = sum(grads[name].flatten(1).square().sum(1) for name in names)
    assert isinstance(squares, Tensor)
    np.testing.assert_allclose(table.columns["grad_norm"], squares.sqrt(), rtol=1e-9)


def test_rows_of_a_dataset_with_lists_of_numbers_become_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.inner(features)

    rows = datasets.Dataset.from_list(
        [{"features": [0.5 * row, 1.0], "label": row % 3} for row in range(4)]
    )
    found = run_pass(Classification(Named().eval()), rows, [GradientNorm()])
    pairs = [(torch.tensor(row["features"]), row["label"]) for row in rows.to_list()]
    wanted = run_pass(Classification(model.eval()), pairs, [GradientNorm()])
    np.testing.assert_allclose(found.columns["grad_norm"], wanted.columns["grad_norm"], rtol=1e-6)
