"""Weights by loss against uniform weights: a language model on spoilt data, a toy, the overhead.

    python benchmarks/reweighting.py                             # made-up text, for a look
    python benchmarks/reweighting.py --data lm_domains --runs runs/reweighting

Of the training sequences, 30 % are copies of a few and 10 % are random tokens; the rest is
equally many of each domain, all in one order for each seed, seen once. Every method starts
from the same weights and sees the same batches. Perplexities are of held-out documents.
A run that is finished is kept in `--runs` and not repeated. The toy is a linear regression
without noise in which most of the data is learnt early.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from domain_texts import DomainTexts, read_domains, small_llama
from measuring import interleave, options, parse, publish, table
from torch import Tensor
from torch.nn import functional

from selection import (
    LossReweighter,
    Reweighting,
    causal_losses,
    extremes,
    full_range,
    kl_dro,
    linupper,
    quadratic,
    uniform,
    upper,
)

DUPLICATED, CORRUPTED = 0.3, 0.1
KINDS = ("clean", "duplicated", "corrupted")


@dataclass(frozen=True)
class Recipe:
    """How the language model is trained."""

    steps: int = 200
    batch_size: int = 16
    length: int = 96
    width: int = 160
    layers: int = 4
    vocabulary: int = 1024
    learning_rate: float = 2e-3
    num_held_out: int = 16
    evaluations: int = 4
    num_copied: int = 16
    final_rate: float = 0.0  # the last learning rate over the largest
    clip: float | None = None
    as_published: bool = False


# The paper's settings: weights uniform for a twentieth of the steps, the range from the least to
# the largest loss, a learning rate that falls to a fifth, clipped gradients.
PUBLISHED = Recipe(steps=500, evaluations=5, final_rate=0.2, clip=1.0, as_published=True)


def methods(recipe: Recipe) -> dict[str, LossReweighter]:
    if recipe.as_published:
        settings = {"loss_range": full_range, "warmup": recipe.steps // 20}
        return {
            "uniform": LossReweighter(curve=uniform),
            "linupper, r 1": LossReweighter(curve=linupper, temperature=1.0, **settings),
            "quadratic, r 1": LossReweighter(curve=quadratic, temperature=1.0, **settings),
        }
    warmup = recipe.steps // 12
    return {
        "uniform": LossReweighter(curve=uniform),
        "linupper, r 1": LossReweighter(curve=linupper, temperature=1.0, warmup=warmup),
        "linupper, r 0.4": LossReweighter(curve=linupper, temperature=0.4, warmup=warmup),
        "quadratic, r 0.4": LossReweighter(curve=quadratic, temperature=0.4, warmup=warmup),
        "upper, r 0.4": LossReweighter(curve=upper, temperature=0.4, warmup=warmup),
    }


def training_order(texts: DomainTexts, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Return the sequences in the order of training, and the kind of each."""
    generator = torch.Generator().manual_seed(seed)
    total = recipe.steps * recipe.batch_size
    num_copies, num_random = int(DUPLICATED * total), int(CORRUPTED * total)
    share = -(-(total - num_copies - num_random) // len(texts.train))
    picked = [
        part[torch.randperm(len(part), generator=generator)[:share]]
        for part in texts.train.values()
    ]
    clean = torch.cat(picked)[: total - num_copies - num_random]
    every = torch.cat(list(texts.train.values()))
    copied = every[torch.randperm(len(every), generator=generator)[: recipe.num_copied]]
    copies = copied[torch.randint(len(copied), (num_copies,), generator=generator)]
    shape = (total - len(clean) - num_copies, recipe.length)
    noise = torch.randint(texts.vocabulary, shape, generator=generator)
    kinds = torch.tensor([0] * len(clean) + [1] * num_copies + [2] * len(noise))
    order = torch.randperm(total, generator=generator)
    return torch.cat([clean, copies, noise])[order], kinds[order]


def train(texts: DomainTexts, reweighter: LossReweighter, recipe: Recipe, seed: int) -> dict:
    """Train one model; return losses by step and domain, and what weight each kind had."""
    torch.manual_seed(seed)
    model = small_llama(
        texts.vocabulary, recipe.length, width=recipe.width, layers=recipe.layers, seed=seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    # `initial_lr / final_div_factor` is the last rate, and `initial_lr` a 25th of the largest.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.steps,
        pct_start=0.1,
        final_div_factor=1 / (25 * recipe.final_rate) if recipe.final_rate else 1e4,
    )
    reweighting = Reweighting(reweighter)
    sequences, kinds = training_order(texts, recipe, seed)
    weight, losses = torch.zeros(len(KINDS)), {}
    for step, (batch, kind) in enumerate(
        zip(sequences.split(recipe.batch_size), kinds.split(recipe.batch_size), strict=True)
    ):
        take_step(model, batch, optimizer, reweighting, recipe.clip)
        schedule.step()
        if step >= recipe.steps // 2:
            weight.index_add_(0, kind, reweighting.last.values)
        if (step + 1) % (recipe.steps // recipe.evaluations) == 0:
            losses[step + 1] = evaluate(model, texts)
    counts = torch.bincount(kinds[recipe.steps // 2 * recipe.batch_size :], minlength=3)
    relative = weight * recipe.batch_size / counts.clamp(min=1)
    return {"losses": losses, "relative": dict(zip(KINDS, relative.tolist(), strict=True))}


def take_step(
    model, batch: Tensor, optimizer, reweighting: Reweighting | None, clip: float | None = None
) -> None:
    logits = model(input_ids=batch, use_cache=False).logits
    if reweighting is None:
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    else:
        loss = reweighting(*causal_losses(logits, batch))
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def evaluate(model, texts: DomainTexts) -> dict[str, float]:
    """Return the mean loss a token of each domain."""
    with torch.no_grad():
        return {
            name: float(
                causal_losses(model(input_ids=part, use_cache=False).logits, part)[0].mean()
            )
            for name, part in texts.held_out.items()
        }


def kept(path: Path | None, compute: Callable[[], dict]) -> dict:
    """Return what a finished run found, or run it."""
    if path is not None and path.exists():
        return json.loads(path.read_text())
    found = json.loads(json.dumps(compute()))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return found


def language_tables(
    texts: DomainTexts, recipe: Recipe, seeds: Sequence[int], runs: Path | None
) -> list[str]:
    found: dict[str, list[dict]] = {}
    for seed in seeds:
        for name, reweighter in methods(recipe).items():
            path = (
                runs / f"{name.replace(', ', '-').replace(' ', '')}-{seed}.json" if runs else None
            )
            run = kept(path, lambda r=reweighter, s=seed: train(texts, r, recipe, s))
            found.setdefault(name, []).append(run)
            print(f"seed {seed}, {name}: {macro(run, str(recipe.steps)):.4f}", file=sys.stderr)
    steps = list(found["uniform"][0]["losses"])
    rows = [
        [name, *(spread([perplexity(macro(run, step)) for run in group]) for step in steps)]
        for name, group in found.items()
    ]
    over_steps = table(["perplexity, mean over domains", *(f"step {s}" for s in steps)], rows)
    final = steps[-1]
    differences = [
        [
            name,
            spread(
                [
                    macro(a, final) - macro(b, final)
                    for a, b in zip(group, found["uniform"], strict=True)
                ],
                4,
            ),
        ]
        + [f"{mean(run['relative'][kind] for run in group):.2f}" for kind in KINDS]
        for name, group in found.items()
    ]
    paired = table(
        ["method", "loss less that of uniform, same seed", *(f"weight of {k}" for k in KINDS)],
        differences,
    )
    over_uniform = [
        by_domain(group, texts.held_out, steps, found["uniform"], f"{name}, over uniform")
        for name, group in found.items()
        if name != "uniform"
    ]
    own = by_domain(found["uniform"], texts.held_out, steps, None, "uniform")
    return [over_steps, paired, own, *over_uniform]


def by_domain(
    group: Sequence[dict],
    domains: Iterable[str],
    steps: Sequence[str],
    reference: Sequence[dict] | None,
    name: str,
) -> str:
    """Return the perplexity of each domain over steps, or its ratio to that of other runs."""
    rows = []
    for domain in domains:
        losses = {step: [run["losses"][step][domain] for run in group] for step in steps}
        if reference is not None:
            losses = {
                step: [a - b["losses"][step][domain] for a, b in zip(own, reference, strict=True)]
                for step, own in losses.items()
            }
        digits = 1 if reference is None else 3
        cells = [f"{perplexity(mean(losses[step])):.{digits}f}" for step in steps]
        rows.append([domain, *cells])
    return table([f"perplexity, {name}", *(f"step {step}" for step in steps)], rows)


def macro(run: dict, step: str) -> float:
    return mean(run["losses"][step].values())


def perplexity(loss: float) -> float:
    return float(torch.tensor(loss).exp())


def spread(values: Sequence[float], digits: int = 2) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def toy_run(reweighter: LossReweighter, seed: int, steps: int) -> list[float]:
    """Return the test loss at four steps of SGD on a regression that can be interpolated.

    Nine in ten inputs vary in 5 of 50 directions only, and are soon learnt.
    """
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(50, generator=random)
    inputs = torch.randn(2000, 50, generator=random)
    inputs[:1800, 5:] *= 0.02
    test = torch.randn(1000, 50, generator=random)
    estimate = torch.zeros(50, requires_grad=True)
    reweighting = Reweighting(reweighter)
    found = []
    for step in range(steps):
        rows = inputs[torch.randint(2000, (32,), generator=random)]
        (gradient,) = torch.autograd.grad(
            reweighting((rows @ (estimate - truth)).square()), estimate
        )
        with torch.no_grad():
            estimate -= 0.01 * gradient
        if (step + 1) % (steps // 4) == 0:
            found.append(float((test @ (estimate.detach() - truth)).square().mean()))
    return found


def toy_table(seeds: Sequence[int], steps: int) -> str:
    curves = {"uniform": uniform, "linupper": linupper, "quadratic": quadratic}
    curves |= {"extremes": extremes, "upper": upper, "kl_dro": kl_dro}
    rows = []
    for name, curve in curves.items():
        runs = [toy_run(LossReweighter(curve=curve), seed, steps) for seed in seeds]
        rows.append([name, *(spread(column, 3) for column in zip(*runs, strict=True))])
    head = [f"step {steps * part // 4}" for part in range(1, 5)]
    return table(["test loss, r 1", *head], rows)


def overhead_table(texts: DomainTexts, recipe: Recipe, rounds: int, repeats: int) -> str:
    """Time a step with and without weights, in turns."""
    model = small_llama(
        texts.vocabulary, recipe.length, width=recipe.width, layers=recipe.layers, seed=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    batch = torch.cat(list(texts.train.values()))[: recipe.batch_size]
    weigh = Reweighting(methods(recipe)["linupper, r 1"])
    runs: Mapping[str, Reweighting | None] = {"mean of the loss": None, "linupper": weigh}
    times = interleave(
        {n: lambda r=r: take_step(model, batch, optimizer, r) for n, r in runs.items()},
        rounds,
        repeats=repeats,
    )
    losses = torch.rand(recipe.batch_size)
    alone = interleave({"weights": lambda: weigh(losses)}, rounds, repeats=100)
    step = times.typical("mean of the loss")
    rows = [
        [
            name,
            f"{times.typical(name) * 1e3:.1f} ms",
            f"{times.ratio(name, 'mean of the loss'):.4f}",
        ]
        for name in runs
    ]
    rows.append(
        [
            "weights alone",
            f"{alone.typical('weights') * 1e3:.3f} ms",
            f"{alone.typical('weights') / step:.4f}",
        ]
    )
    return table(["step", "time", "of a plain step"], rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of domains as *.jsonl.gz")
    parser.add_argument("--runs", type=Path, help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only-overhead", action="store_true", help="time the steps only")
    parser.add_argument("--published", action="store_true", help="train longer, as the paper does")
    chosen = parse(parser)
    recipe = PUBLISHED if chosen.published else Recipe()
    if chosen.quick:
        small = {"steps": 8, "batch_size": 4, "length": 16, "width": 16, "layers": 1}
        few = {"vocabulary": 300, "num_held_out": 2, "evaluations": 2, "num_copied": 2}
        recipe = replace(recipe, **small, **few)
    seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
    texts = read_domains(
        chosen.data,
        length=recipe.length,
        num_train=2 * recipe.steps,
        num_held_out=recipe.num_held_out,
        vocabulary=recipe.vocabulary,
    )
    timing = overhead_table(texts, recipe, chosen.rounds, 1 if chosen.quick else 5)
    parts = ["## Overhead", timing]
    if not chosen.only_overhead:
        toy = toy_table(range(2 if chosen.quick else 10), 40 if chosen.quick else 400)
        settings = f"{len(seeds)} seeds; {json.dumps(asdict(recipe))}"
        parts = [
            "## Language model",
            settings,
            *language_tables(texts, recipe, seeds, chosen.runs),
            "## Regression",
            toy,
            *parts,
        ]
    publish("Weights by loss", parts, chosen.out)


if __name__ == "__main__":
    main()
