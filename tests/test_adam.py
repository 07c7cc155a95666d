"""Adam's directions are those in which Adam steps, and a state of another model is refused."""

from copy import deepcopy
from typing import Any

import cases
import pytest
import torch
from contracts import gradient, project
from oracles import basis, gradients_one_by_one, normal_form
from torch import Tensor, nn

from projections import (
    SJLT,
    AdamDirected,
    AdamScaled,
    AdamState,
    DataError,
    PassSettings,
    Sketch,
    StoreMismatchError,
    Task,
    TensorSketch,
    adam,
    adam_direction,
    coordinates,
    describe,
    find_components,
    index_gradients,
    less_direction,
    random_kronecker,
    read_adam_state,
    run_pass,
)

EXACT = 1e-9
RATE = 1e-3
CASES = ["gpt2-tied", "llama-left-padding", "mlp-layernorm-subclass", "convnet-groups-reflect"]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def trained(name: str, num: int = 4, steps: int = 3) -> tuple[Task, list[Any], Any]:
    """A case after some steps of Adam on all its examples."""
    task, examples = cases.build(name, num)
    optimizer = torch.optim.Adam(task.model.named_parameters(), lr=RATE, eps=1e-6)
    for _ in range(steps):
        optimizer.zero_grad()
        task.losses(task.collate(examples)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return task, examples, optimizer


def rows(task: Task, examples: list[Any], projector: Any) -> Tensor:
    table = run_pass(task, examples, [Sketch(projector)], settings=PassSettings(batch_size=3))
    return torch.from_numpy(table.columns["sketch"])


def everything(task: Task) -> Any:
    return coordinates(find_components(task.model).components.values())


def in_order(task: Task, values: dict[str, Tensor]) -> Tensor:
    """Values by parameter name as rows of `everything`."""
    starts = everything(task).starts
    return torch.cat([values[name].flatten(1) for name in sorted(starts, key=starts.get)], 1)


def steps_of_adam(task: Task, examples: list[Any], optimizer: Any) -> dict[str, Tensor]:
    """What the optimizer itself would do for each example, over its learning rate."""
    found: dict[str, list[Tensor]] = {name: [] for name in names_of(task.model)}
    for example in examples:
        twin = deepcopy(task.model)
        own = torch.optim.Adam(twin.named_parameters(), lr=RATE, eps=1e-6)
        own.load_state_dict(deepcopy(optimizer.state_dict()))
        parameters = dict(twin.named_parameters())
        gradients = torch.autograd.grad(
            task.losses(task.collate([example])).sum(), list(task.model.parameters())
        )
        for name, grad in zip(parameters, gradients, strict=True):
            parameters[name].grad = grad
        before = {name: p.detach().clone() for name, p in parameters.items()}
        own.step()
        for name, parameter in parameters.items():
            found[name].append((before[name] - parameter.detach()) / RATE)
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_direction_is_the_step_that_adam_takes(name: str) -> None:
    task, examples, optimizer = trained(name)
    state = read_adam_state(optimizer.state_dict(), task.model)
    examples = examples[:2]
    projector = AdamDirected(projector=everything(task), state=state, direction=adam_direction)
    steps = {
        key: torch.stack([normal_form(task.model, key, one) for one in values])
        for key, values in steps_of_adam(task, examples, optimizer).items()
    }
    expected = in_order(task, steps)
    torch.testing.assert_close(rows(task, examples, projector), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_scaled_gradients_are_gradients_over_the_root_of_the_second_moment(name: str) -> None:
    task, examples, optimizer = trained(name)
    numbers = optimizer.state_dict()["state"]
    expected = {}
    for number, (key, grads) in enumerate(gradients_one_by_one(task, examples).items()):
        second = normal_form(task.model, key, numbers[number]["exp_avg_sq"])
        expected[key] = grads / ((second / (1 - 0.999**3)).sqrt() + 1e-6)
    state = read_adam_state(optimizer.state_dict(), task.model)
    found = rows(task, examples, AdamScaled(projector=everything(task), state=state))
    torch.testing.assert_close(found, in_order(task, expected), rtol=EXACT, atol=EXACT)


def test_the_direction_of_less_is_its_formula() -> None:
    task, examples, optimizer = trained("mlp-layernorm-subclass")
    numbers, expected = optimizer.state_dict()["state"], {}
    for number, (key, g) in enumerate(gradients_one_by_one(task, examples).items()):
        m, v = numbers[number]["exp_avg"], numbers[number]["exp_avg_sq"]
        expected[key] = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g * g + 1e-6).sqrt()
    state = read_adam_state(optimizer.state_dict(), task.model)
    projector = AdamDirected(projector=everything(task), state=state, direction=less_direction)
    found = rows(task, examples, projector)
    torch.testing.assert_close(found, in_order(task, expected), rtol=EXACT, atol=EXACT)


def test_any_projector_takes_directions() -> None:
    task, examples, optimizer = trained("gpt2-tied", 3)
    state = read_adam_state(optimizer.state_dict(), task.model)
    layout = find_components(task.model).components
    for direction in (adam_direction, less_direction):
        flat = everything(task)
        whole = rows(task, examples, AdamDirected(projector=flat, state=state, direction=direction))
        for inner in (
            SJLT(num_dims=64, seed=0),
            TensorSketch(num_dims=64, seed=0),
            random_kronecker(layout.values(), num_dims=200, seed=0),
        ):
            outer = AdamDirected(projector=inner, state=state, direction=direction)
            found = rows(task, examples, outer)
            matrix = torch.zeros(flat.num_dims, inner.num_dims, dtype=torch.float64)
            for component in layout.values():
                start = flat.starts[component.parameters[0].name]
                unit = torch.zeros(component.size, inner.num_dims, dtype=torch.float64)
                inner.project(basis(component), unit)
                matrix[start : start + component.size] = unit
            torch.testing.assert_close(found, whole @ matrix, rtol=1e-8, atol=1e-8)


def test_few_examples_are_formed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    task, examples, optimizer = trained("llama-left-padding")
    state = read_adam_state(optimizer.state_dict(), task.model)
    sketch = SJLT(num_dims=32, seed=0)
    for projector in (
        AdamScaled(projector=sketch, state=state),
        AdamDirected(projector=sketch, state=state, direction=adam_direction),
    ):
        whole = rows(task, examples, projector)
        with monkeypatch.context() as patch:
            patch.setattr(adam, "PIECE_ENTRIES", 1)
            torch.testing.assert_close(rows(task, examples, projector), whole)


def test_a_state_without_names_is_read_with_names() -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = read_adam_state(optimizer.state_dict(), model, names=["weight", "bias"])
    assert state.of("bias").step == 1
    assert torch.equal(state.of("weight").second, optimizer.state_dict()["state"][0]["exp_avg_sq"])
    twin = read_adam_state(deepcopy(optimizer.state_dict()), model, names=["weight", "bias"])
    assert twin.fingerprint == state.fingerprint
    optimizer.step()
    later = read_adam_state(optimizer.state_dict(), model, names=["weight", "bias"])
    assert later.fingerprint != state.fingerprint


def test_a_store_knows_whose_directions_it_holds(tmp_path: Any) -> None:
    task, examples, optimizer = trained("mlp-layernorm-subclass")
    state = read_adam_state(optimizer.state_dict(), task.model)
    sketch = SJLT(num_dims=8, seed=0)
    store = index_gradients(
        task, examples, AdamScaled(projector=sketch, state=state), path=tmp_path
    )
    assert store.manifest["projector"]["state"] == state.fingerprint
    with pytest.raises(StoreMismatchError, match="projector"):
        index_gradients(task, examples, sketch, path=tmp_path)
    kinds = [
        AdamScaled(projector=sketch, state=state),
        AdamDirected(projector=sketch, state=state, direction=adam_direction),
        AdamDirected(projector=sketch, state=state, direction=less_direction),
    ]
    assert len({repr(describe(kind)) for kind in kinds}) == 3


# Refusals.


def stepped(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def square() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def test_a_state_whose_order_is_unknown_is_refused() -> None:
    model = square()
    state = stepped(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(ValueError, match="`names` must be given for a state that numbers"):
        read_adam_state(state, model)


def test_names_in_another_order_are_refused_by_shape_and_by_the_states_own_names() -> None:
    model = square()
    state = stepped(torch.optim.Adam(model.parameters()), model)
    shuffled = list(reversed(names_of(model)))
    with pytest.raises(StoreMismatchError, match=r"'1\.bias' must have the shape .*, \(2,\)"):
        read_adam_state(state, model, names=shuffled)
    named = stepped(torch.optim.Adam(model.named_parameters()), model)
    with pytest.raises(StoreMismatchError, match=r"first differ at \('1\.bias', '0\.weight'\)"):
        read_adam_state(named, model, names=shuffled)
    with pytest.raises(StoreMismatchError, match=r"must be the state's own 4 names\. Got 3"):
        read_adam_state(named, model, names=names_of(model)[:3])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.weight", "0.bias", "1.weight"], r"must be 4 different names.*Got 3, 3 of them"),
        (["0.weight", "0.bias", "1.weight", "0.bias"], r"Got 4, 3 of them different"),
        (["0.weight", "0.bias", "1.weight", "other"], r"'other' is not; the model has '0\.bias'"),
    ],
    ids=["few", "twice", "unknown"],
)
def test_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    model = square()
    state = stepped(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(StoreMismatchError, match=message):
        read_adam_state(state, model, names=names)


def test_a_state_of_fewer_parameters_is_refused_when_read_and_when_used() -> None:
    model = square()
    model[0].requires_grad_(False)
    state = stepped(torch.optim.Adam(model[1].named_parameters()), model)
    names = ["1.weight", "1.bias"]
    state["param_groups"][0]["param_names"] = names
    read = read_adam_state(state, model)
    assert sorted(read.moments) == sorted(names)
    model[0].requires_grad_(True)
    with pytest.raises(StoreMismatchError, match=r"lacks '0\.bias', '0\.weight'\. Freeze them"):
        read_adam_state(state, model)
    with pytest.raises(StoreMismatchError, match=r"'fc\.weight' is not in it\. Leave the layer"):
        project(AdamScaled(projector=SJLT(num_dims=8, seed=0), state=read), gradient("linear", 2))


def test_what_is_not_the_state_of_adam_is_refused() -> None:
    model = square()
    with pytest.raises(DataError, match=r"with 'state' and 'param_groups'\. Got \['0\.bias'"):
        read_adam_state(model.state_dict(), model)
    fresh = torch.optim.Adam(model.named_parameters()).state_dict()
    with pytest.raises(DataError, match=r"took none on '0\.weight'"):
        read_adam_state(fresh, model)
    adagrad = stepped(torch.optim.Adagrad(model.named_parameters()), model)
    with pytest.raises(DataError, match=r"must be that of Adam or AdamW.*'0\.weight' has \['step'"):
        read_adam_state(adagrad, model)
    ams = stepped(torch.optim.Adam(model.named_parameters(), amsgrad=True), model)
    with pytest.raises(DataError, match="without `amsgrad`"):
        read_adam_state(ams, model)


def test_an_empty_state_scales_nothing() -> None:
    state = AdamState({})
    with pytest.raises(StoreMismatchError, match="must hold every parameter of the pass"):
        project(AdamScaled(projector=SJLT(num_dims=8, seed=0), state=state), gradient("table", 2))
