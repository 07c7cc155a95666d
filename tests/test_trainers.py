"""The Hugging Face trainer with weights and draws: windows, NaN, evaluation, kill and resume."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from projections import StoreMismatchError, Task
from selection import (
    ODM,
    FixedMixture,
    InBatchDGA,
    LossReweighter,
    MirrorDescent,
    MixtureDraws,
    MixtureStream,
    Reweighting,
    RunningReweighting,
    Selection,
    SelectionDraws,
    WeightedDraws,
    linupper,
    regression_losses,
    uniform,
)
from selection.mixtures.recorded import RecordedMixture
from selection.ranks import sum_over_ranks
from selection.trainers import DrawsMixin, ReweightingMixin, StateCallback

NUM_ROWS = 24
FLOAT32 = 1e-6


class Regressor(nn.Module):
    """A linear model with dropout, whose own loss is the plain mean."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.5, -0.25, 1.0]]))
            self.linear.bias.zero_()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.linear(self.dropout(inputs))
        loss = {} if labels is None else {"loss": (logits - labels).square().mean()}
        return {**loss, "logits": logits}


class Seen(Dataset):
    """Rows that remember which of them were asked for."""

    def __init__(self, broken: int | None = None) -> None:
        random = torch.Generator().manual_seed(0)
        self.order: list[int] = []
        rows = []
        for _ in range(NUM_ROWS):
            inputs = torch.randn(3, generator=random)
            rows.append({"inputs": inputs, "labels": inputs.sum(0, keepdim=True) * 3})
        if broken is not None:
            rows[broken]["inputs"] = torch.full((3,), torch.nan)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        self.order.append(row)
        return self.rows[row]


class Weighted(ReweightingMixin, Trainer):
    pass


class Drawn(DrawsMixin, Trainer):
    pass


class Both(ReweightingMixin, DrawsMixin, Trainer):
    pass


class Moving(RecordedMixture):
    """A mixture that goes by the losses of the domains."""

    def update(self, step: int, *, domains: Any = None, losses: Any = None) -> None:
        sums = np.bincount(domains, losses, minlength=len(self.names))
        sums = sum_over_ranks(torch.from_numpy(sums)).numpy() + 1
        self._record(step, sums / sums.sum(), sums)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    chosen = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "dataloader_pin_memory": False,
        **settings,
    }
    return TrainingArguments(str(folder), **chosen)


def parameters(trainer: Any) -> Tensor:
    return torch.cat([part.detach().flatten() for part in trainer.model.parameters()])


def weighted(
    folder: Path, reweighter: LossReweighter, rows: Seen | None = None, **settings: Any
) -> Any:
    return Weighted(
        model=Regressor(settings.pop("dropout", 0.0)),
        args=arguments(folder, **settings),
        train_dataset=rows or Seen(),
        reweighting=Reweighting(reweighter, record_every=1),
        losses=regression_losses,
    )


def test_uniform_weights_train_as_the_plain_trainer_does(tmp_path: Path) -> None:
    plain = Trainer(model=Regressor(), args=arguments(tmp_path), train_dataset=Seen())
    plain.train()
    ours = weighted(tmp_path, LossReweighter(curve=uniform))
    ours.train()
    torch.testing.assert_close(parameters(ours), parameters(plain), atol=FLOAT32, rtol=0)
    logged = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (plain, ours)]
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_windows_of_micro_batches_train_as_one_batch_does(tmp_path: Path, dropout: float) -> None:
    found = []
    for micro, parts in ((8, 1), (2, 4)):
        trainer = weighted(
            tmp_path,
            LossReweighter(curve=linupper, temperature=0.4),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=parts,
        )
        if dropout:
            trainer.model.dropout.p = dropout
        trainer.train()
        found.append((parameters(trainer), trainer.reweighting.last.values))
    if dropout:  # masks differ with the shapes of batches; weights must fit the losses all the same
        own = trainer.reweighting.own_losses
        expected = trainer.reweighting.reweighter.weights(own).values
        torch.testing.assert_close(found[1][1], expected)
    else:
        torch.testing.assert_close(found[1][0], found[0][0], atol=FLOAT32, rtol=0)


def test_the_losses_that_are_weighed_are_those_of_the_backward_dropout_included(
    tmp_path: Path,
) -> None:
    trainer = weighted(
        tmp_path, LossReweighter(), dropout=0.5, gradient_accumulation_steps=2, max_steps=1
    )
    weighed: list[Tensor] = []
    trainer.losses = lambda logits, labels: (
        weighed.append(regression_losses(logits, labels)[0].detach())
        or regression_losses(logits, labels)
    )
    trainer.train()
    first, second = weighed[:2], weighed[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(*first)


def test_a_row_with_nan_is_named_and_the_rest_of_the_batch_is_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for parts in (1, 2):
        trainer = weighted(
            tmp_path,
            LossReweighter(),
            Seen(broken=5),
            gradient_accumulation_steps=parts,
            num_train_epochs=1,
        )
        trainer.train()
        assert parameters(trainer).isfinite().all()
        assert sum(trainer.reweighting.history.table().column("excluded").to_pylist()) >= 1
    assert "losses are not finite and have the weight 0" in caplog.text
    alone = weighted(
        tmp_path, LossReweighter(), Seen(broken=5), per_device_train_batch_size=1, max_steps=24
    )
    alone.train()
    assert parameters(alone).isfinite().all()


def test_evaluation_has_the_loss_of_the_model(tmp_path: Path) -> None:
    trainer = weighted(tmp_path, LossReweighter())
    trainer.eval_dataset = Seen()
    found = trainer.evaluate()["eval_loss"]
    plain = Trainer(model=Regressor(), args=arguments(tmp_path), eval_dataset=Seen())
    assert found == pytest.approx(plain.evaluate()["eval_loss"])
    assert trainer.reweighting.step == 0


def test_running_weights_train_without_a_forward_that_comes_first(tmp_path: Path) -> None:
    trainer = weighted(tmp_path, LossReweighter(), gradient_accumulation_steps=2)
    running = RunningReweighting(LossReweighter(curve=uniform), num_parts=2)
    trainer.reweighting = running
    calls: list[int] = []
    trainer.losses = lambda *pair: calls.append(1) or regression_losses(*pair)
    trainer.train()
    assert (len(calls), running.step) == (12, 6)
    plain = weighted(tmp_path, LossReweighter(curve=uniform), gradient_accumulation_steps=2)
    plain.train()
    torch.testing.assert_close(parameters(trainer), parameters(plain), atol=FLOAT32, rtol=0)


def test_a_batch_without_labels_is_refused(tmp_path: Path) -> None:
    rows = [{"inputs": torch.zeros(3)} for _ in range(8)]
    trainer = weighted(tmp_path, LossReweighter())
    trainer.train_dataset = rows
    with pytest.raises(
        ValueError, match=r"a batch must have 'labels' to be weighed\. Got \['inputs'\]"
    ):
        trainer.train()


# Draws


def test_a_trainer_goes_through_a_selection_each_row_once_an_epoch(tmp_path: Path) -> None:
    rows = Seen()
    chosen = Selection(np.arange(0, NUM_ROWS, 2), np.ones(12))
    draws = SelectionDraws(chosen, rows, batch_size=4, seed=0)
    rows.order.clear()
    settings = arguments(tmp_path, ignore_data_skip=True)
    Drawn(model=Regressor(), args=settings, train_dataset=rows, draws=draws).train()
    assert len(rows.order) == 24
    assert sorted(rows.order[:12]) == sorted(rows.order[12:]) == list(range(0, NUM_ROWS, 2))


def test_settings_that_would_spoil_the_draws_are_refused(tmp_path: Path) -> None:
    draws = WeightedDraws(np.ones(NUM_ROWS), batch_size=4, seed=0)
    with pytest.raises(
        ValueError, match=r"must be 8: 8 a device, 1 ranks, 1 micro-batches\. Got 4"
    ):
        settings = arguments(tmp_path, per_device_train_batch_size=8)
        Drawn(model=Regressor(), args=settings, train_dataset=Seen(), draws=draws)
    with pytest.raises(ValueError, match=r"`max_steps` must be set in the training arguments"):
        settings = arguments(tmp_path, max_steps=-1)
        Drawn(model=Regressor(), args=settings, train_dataset=Seen(), draws=draws)
    trainer = Drawn(model=Regressor(), args=arguments(tmp_path), train_dataset=Seen(), draws=draws)
    with pytest.raises(ValueError, match=r"`ignore_data_skip` must be True"):
        trainer.train()
    settings = arguments(tmp_path, restore_callback_states_from_checkpoint=True)
    trainer = Drawn(model=Regressor(), args=settings, train_dataset=Seen(), draws=draws)
    with pytest.raises(
        ValueError, match=r"`restore_callback_states_from_checkpoint` must be False"
    ):
        trainer.train()
    with pytest.raises(TypeError, match=r"`model` must have `state_dict` and `load_state_dict`"):
        StateCallback(model=3)


# Kill and resume


class Killer(TrainerCallback):
    """Ends the process, as a power cut does, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    folder: Path,
    *,
    kill_at: int | None = None,
    resume: bool = False,
    micro: int = 4,
    dropout: float = 0.2,
) -> Any:
    """Train on a mixture that follows losses, with weights; return what has to agree."""
    rows = Seen()
    mixture = Moving(("a", "b", "c"))
    draws = MixtureDraws(mixture, ["a", "b", "c"] * 8, batch_size=8, seed=3, lag=3)
    rows.order.clear()
    trainer = Both(
        model=Regressor(dropout),
        args=arguments(
            folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=2,
            max_steps=9,
            save_strategy="steps",
            save_steps=4,
            ignore_data_skip=True,
            optim="adamw_torch",
        ),
        train_dataset=rows,
        draws=draws,
        mixture=mixture,
        reweighting=Reweighting(LossReweighter(temperature=0.4, warmup=2), record_every=1),
        losses=regression_losses,
        callbacks=[] if kill_at is None else [Killer(kill_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, rows, mixture


def test_a_killed_and_resumed_trainer_ends_with_the_same_weights_rows_and_mixture(
    tmp_path: Path,
) -> None:
    whole, rows, mixture = run(tmp_path / "whole")
    killed = [sys.executable, __file__, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(killed, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    again, later, resumed = run(tmp_path / "killed", resume=True)
    torch.testing.assert_close(parameters(again), parameters(whole), atol=0, rtol=0)
    assert again.reweighting.history.table().equals(whole.reweighting.history.table())
    assert (
        resumed.history.columns["weights"].tolist() == mixture.history.columns["weights"].tolist()
    )
    # The checkpoint is that of step 4; a loader may fetch one micro-batch more than is used.
    assert later.order[:40] == rows.order[32:72]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_in_the_trainer_goes_on_where_it_was_stopped(tmp_path: Path, workers: int) -> None:
    def train(folder: Path, steps: int, resume: bool) -> tuple[Tensor, list[list[float]]]:
        mixture = Moving(("a", "b"))
        sources = {"a": Seen().rows[:9], "b": Seen().rows[9:]}
        stream = MixtureStream(sources, mixture, batch_size=8, seed=0, rank=0, num_ranks=1)
        seen: list[list[float]] = []

        def collate(rows: list[Any]) -> dict[str, Tensor]:
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

        trainer = Weighted(
            model=Regressor(),
            args=arguments(
                folder,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                max_steps=steps,
                save_strategy="steps",
                save_steps=4,
                ignore_data_skip=True,
                dataloader_num_workers=workers,
            ),
            train_dataset=stream,
            data_collator=collate,
            reweighting=Reweighting(LossReweighter(), record_every=1),
            losses=lambda logits, labels: (
                seen.append(labels[:, 0].tolist()) or regression_losses(logits, labels)
            ),
            callbacks=[StateCallback(mixture=mixture, stream=stream)],
        )
        trainer.train(resume_from_checkpoint=resume)
        assert stream.consumed == steps
        return parameters(trainer), seen

    expected, rows = train(tmp_path / "whole", 8, False)
    _, first = train(tmp_path / "parts", 4, False)
    found, second = train(tmp_path / "parts", 8, True)
    assert first + second == rows
    assert torch.equal(found, expected)


class Squares(Task):
    """What the loss of a `Regressor` means for one example."""

    def losses(self, batch: Any) -> Tensor:
        return (self.model(batch["inputs"])["logits"] - batch["labels"]).square().sum(1)


def test_alignments_of_the_training_batch_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    def train(folder: Path, steps: int, resume: bool) -> tuple[Tensor, np.ndarray]:
        model, names = Regressor(dropout=0.2), ("a", "b", "c")
        rule = MirrorDescent(step_size=1.0, average=0.5, floor=0.05)
        settings = {"every": 3, "batch_size": 2, "rule": rule, "loss_factor": 0.5, "seed": 0}
        mixture = InBatchDGA(Squares(model), names, Seen().rows[:4], **settings)
        draws = MixtureDraws(mixture, names * 8, batch_size=8, seed=3, lag=2)
        trainer = Drawn(
            model=model,
            args=arguments(
                folder,
                gradient_accumulation_steps=2,
                max_steps=steps,
                save_strategy="steps",
                save_steps=4,
                ignore_data_skip=True,
            ),
            train_dataset=Seen(),
            draws=draws,
            mixture=mixture,
        )
        with mixture.watching():
            trainer.train(resume_from_checkpoint=resume)
        return parameters(trainer), mixture.history.columns["weights"]

    expected, path = train(tmp_path / "whole", 8, False)
    train(tmp_path / "parts", 4, False)  # one step after a move
    found, again = train(tmp_path / "parts", 8, True)
    assert torch.equal(found, expected)
    assert len(path) == 3 and np.ptp(path[-1]) > 1e-3
    np.testing.assert_array_equal(again, path)


def test_a_checkpoint_without_the_states_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3}
    Trainer(model=Regressor(), args=arguments(tmp_path, **settings), train_dataset=Seen()).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    trainer = weighted(tmp_path, LossReweighter(), **settings)
    with pytest.raises(
        StoreMismatchError,
        match=r"at step 3 must have the states of \['reweighting'\]\. It has those of \[\]",
    ):
        trainer.train(resume_from_checkpoint=True)


def test_a_mixture_hears_the_losses_of_its_domains_but_no_nan(tmp_path: Path) -> None:
    domains = ["a" if row < 8 else "b" for row in range(NUM_ROWS)]
    mixture = ODM(("a", "b"))
    draws = MixtureDraws(mixture, domains, batch_size=8, seed=0)
    trainer = Both(
        model=Regressor(),
        args=arguments(tmp_path, gradient_accumulation_steps=2, ignore_data_skip=True),
        train_dataset=Seen(broken=3),
        draws=draws,
        mixture=mixture,
        reweighting=Reweighting(LossReweighter(curve=uniform)),
        losses=regression_losses,
    )
    trainer.train()
    signals = mixture.history.columns["signal"]
    assert len(signals) == 7
    assert np.isfinite(signals[1:]).all()


def test_a_fixed_mixture_needs_no_update(tmp_path: Path) -> None:
    draws = MixtureDraws(FixedMixture(("x",)), ["x"] * NUM_ROWS, batch_size=4, seed=0)
    settings = arguments(tmp_path, ignore_data_skip=True)
    trainer = Drawn(model=Regressor(), args=settings, train_dataset=Seen(), draws=draws)
    trainer.train()
    assert draws.consumed == 6


def test_two_ranks_train_as_one_does_in_parameters_weights_and_mixture(tmp_path: Path) -> None:
    whole, _, mixture = run(tmp_path / "one", dropout=0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in ("0", "1"):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, __file__, str(tmp_path / "two"), "rank"]
        running.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    for rank in range(2):
        found = torch.load(tmp_path / "two" / f"rank{rank}.pt")
        torch.testing.assert_close(found["parameters"], parameters(whole), atol=1e-5, rtol=1e-4)
        # Losses stand by rank, then by micro-batch.
        expected = whole.reweighting.last.values.sort().values
        torch.testing.assert_close(found["weights"].sort().values, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found["mixture"], torch.from_numpy(mixture.weights), atol=1e-5, rtol=1e-4
        )


if __name__ == "__main__":
    if sys.argv[2:] == ["rank"]:
        trainer, _, mixture = run(Path(sys.argv[1]), micro=2, dropout=0.0)
        weights = trainer.reweighting.last.values
        found = {"parameters": parameters(trainer), "weights": weights}
        found["mixture"] = torch.from_numpy(mixture.weights)
        torch.save(found, Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
    else:
        run(Path(sys.argv[1]), kill_at=6)
