"""The demo: three jobs on real data that dependencies ship, a page and a summary.

Deterministic given the seed, whatever the number of cores; no network; torch's own random
generator and number of threads are as before.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from gradsift.corpus import Corpus, CorpusSettings, build_corpus
from gradsift.digits import METHODS, SHOWN, DigitsResult, DigitsSettings, run_digits
from gradsift.figures import bar_chart, image_uri, line_chart
from gradsift.html import as_percent, write_page
from gradsift.language_model import ModelSettings, build_model, mean_loss, train_model
from gradsift.mixing import MixingResult, MixingSettings, run_mixing
from gradsift.passages import BASELINE, PassagesResult, PassagesSettings, run_passages
from projections import check_at_least, write_json

SUMMARY, REPORT = "summary.json", "report.html"
VERSIONS = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy")
NAMES = {
    "loss": "loss",
    "el2n": "EL2N",
    "grad_norm": "gradient norm",
    "self_influence": "self-influence",
    "trak": "TRAK (gradients, whitened)",
    "cosine": "gradient cosine",
    "dot": "gradient dot product",
    BASELINE: "TF-IDF (shared words)",
    "chance": "chance",
}
SHORT = {"trak": "TRAK", "cosine": "cosine", "dot": "dot", BASELINE: "TF-IDF"}
LOOKED_AT = 21  # points of the curve of what is found: from 0 to 20 % of the images
NUM_NAMED = 3  # domains with a colour of their own in the figure of the mixture
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes of all jobs."""

    digits: DigitsSettings = field(default_factory=DigitsSettings)
    """Job 1."""

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    """The text of jobs 2 and 3."""

    model: ModelSettings = field(default_factory=ModelSettings)
    """The language model of jobs 2 and 3."""

    passages: PassagesSettings = field(default_factory=PassagesSettings)
    """Job 2."""

    mixing: MixingSettings = field(default_factory=MixingSettings)
    """Job 3."""


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    num_seeds: int = 3,
    say: Say,
    settings: DemoSettings | None = None,
) -> Path:
    """Run the three jobs and write ``summary.json`` and ``report.html``.

    Args:
        out: Folder to write to; what is in the two files is replaced.
        seed: The first seed.
        num_seeds: Seeds over which jobs 1 and 3 are repeated.
        say: Takes lines about progress.
        settings: Sizes of the jobs.

    Returns:
        The page.
    """
    check_at_least("num_seeds", num_seeds, 1)
    settings = settings or DemoSettings()
    started = time.monotonic()
    seeds = list(range(seed, seed + num_seeds))
    with one_thread():
        digits = run_digits(settings.digits, seeds=seeds, say=say)
        corpus, model = train_on_text(settings, seed=seed, say=say)
        with TemporaryDirectory() as folder:
            passages = run_passages(
                settings.passages, corpus, model, path=Path(folder), seed=seed, say=say
            )
        mixing = run_mixing(settings.mixing, corpus, model, seeds=seeds, say=say)
        held_out_loss = mean_loss(model, corpus.held_out)
    summary = {
        "seed": seed,
        "num_seeds": num_seeds,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in VERSIONS}},
        "settings": asdict(settings),
        "digits": asdict(digits),
        "text": {
            "domains": corpus.domains,
            "num_parameters": model.num_parameters(),
            "held_out_loss": held_out_loss,
        },
        "passages": asdict(passages),
        "mixing": asdict(mixing),
    }
    write_json(out / SUMMARY, summary)
    write_page(
        out / REPORT,
        "demo.html",
        seed=seed,
        seeds=seeds,
        seconds=summary["seconds"],
        settings=settings,
        corpus=corpus,
        flipped=settings.digits.flipped,
        detector=best(digits.precision, METHODS),
        digits=show_digits(digits, settings.digits),
        passages=show_passages(passages, model.num_parameters()),
        mixing=show_mixing(mixing),
        listing=[*flatten(summary["versions"]), *flatten(summary["settings"])],
    )
    return out / REPORT


def train_on_text(
    settings: DemoSettings, *, seed: int, say: Say
) -> tuple[Corpus, LlamaForCausalLM]:
    """Return the text of jobs 2 and 3, and a model trained on it."""
    corpus = build_corpus(settings.corpus, seed=seed)
    say(f"text: {len(corpus.train):,} passages of {', '.join(corpus.domains)}")
    model = build_model(settings.model, corpus, seed=seed)
    losses = train_model(model, corpus.train, settings.model, seed=seed)
    say(f"text: trained {model.num_parameters():,} parameters, last loss {losses[-1]:.2f}")
    return corpus, model


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside the block.

    Sums then do not depend on the number of cores, and small ones take less time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def show_digits(result: DigitsResult, settings: DigitsSettings) -> dict[str, Any]:
    """Return what the page shows of job 1."""
    shares = np.linspace(0, 1, 101)[:LOOKED_AT].tolist()
    found = {NAMES[name]: result.found[name][:LOOKED_AT] for name in METHODS}
    by_epoch = {NAMES[name]: result.auc_by_epoch[name] for name in METHODS}
    return {
        **asdict(result),
        "methods": METHODS,
        "names": NAMES,
        "shown": SHOWN,
        "top": [
            max(mean(table[name]) for name in METHODS)
            for table in (result.auc, result.precision, result.accuracy)
        ],
        "verdict": judge_digits(result),
        "galleries": [
            (title, [{**image, "uri": image_uri(image["pixels"])} for image in images])
            for title, images in result.galleries.items()
            if images
        ],
        "found_figure": line_chart(
            shares,
            {**found, "at random": shares},
            label="Share of the wrong labels found against share of the images looked at",
            x_label="images looked at",
            y_label="wrong labels found",
            muted=("at random",),
            percent=("x", "y"),
        ),
        "epoch_figure": line_chart(
            settings.score_epochs,
            by_epoch,
            label="ROC-AUC of each score against the epoch at which it was computed",
            x_label="epochs before scoring",
            y_label="ROC-AUC",
            markers=True,
        ),
    }


def judge_digits(result: DigitsResult) -> str:
    """Say in words what job 1 showed."""
    simple = best(result.precision, ("loss", "el2n"))
    deep = best(result.precision, ("grad_norm", "self_influence"))
    ahead, behind = mean(result.precision[simple]), mean(result.precision[deep])
    winner = (
        f"The simple score {NAMES[simple]} finds most ({as_percent(ahead)} of its highest tenth "
        f"are wrong labels), ahead of {NAMES[deep]} ({as_percent(behind)}): here, gradients add "
        "nothing to what the forward pass says already."
        if ahead >= behind
        else f"{NAMES[deep].capitalize()} finds most ({as_percent(behind)} of its highest tenth "
        f"are wrong labels), ahead of the simple {NAMES[simple]} ({as_percent(ahead)})."
    )
    method = best(result.accuracy, METHODS)
    all_data, pruned = mean(result.accuracy["all data"]), mean(result.accuracy[method])
    oracle, random = mean(result.accuracy["oracle"]), mean(result.accuracy["random"])
    return (
        f"{winner} Training without the worst tenth by {NAMES[method]} moves test accuracy from "
        f"{as_percent(all_data)} to {as_percent(pruned)}; dropping exactly the wrong labels gives "
        f"{as_percent(oracle)}, dropping a random tenth {as_percent(random)}."
    )


def show_passages(result: PassagesResult, num_parameters: int) -> dict[str, Any]:
    """Return what the page shows of job 2."""
    gradients = [name for name in result.domain_share if name not in (BASELINE, "chance")]
    ranked = sorted(gradients, key=lambda name: -result.domain_share[name])
    methods = [*ranked, BASELINE, "chance"]
    names = {**NAMES, "trak": "TRAK"}
    bars = {names[name]: result.domain_share[name] for name in methods}
    return {
        "result": result,
        "num_parameters": num_parameters,
        "methods": methods,
        "names": NAMES,
        "short": SHORT,
        "best": ranked[0],
        "best_name": names[ranked[0]],
        "verdict": judge_passages(result, ranked[0]),
        "share_figure": bar_chart(
            bars,
            label="Share of the top passages from the query's own domain, by method",
            x_label="own domain",
            highlight=tuple(names[name] for name in ranked),
        ),
    }


def judge_passages(result: PassagesResult, method: str) -> str:
    """Say in words what job 2 showed."""
    own, words = result.domain_share[method], result.domain_share[BASELINE]
    chance = result.domain_share["chance"]
    compared = (
        f"Shared words, without a model, do better ({as_percent(words)})."
        if words > own
        else f"Shared words reach {as_percent(words)}."
    )
    return (
        f"{NAMES[method].capitalize() if method != 'trak' else 'TRAK'} takes {as_percent(own)} of "
        f"its top {result.k} from the query's own domain, where chance gives {as_percent(chance)}. "
        f"{compared} This counts how topical a method is, not how well it predicts what "
        "retraining would do; and words cannot say which passages harm."
    )


def show_mixing(result: MixingResult) -> dict[str, Any]:
    """Return what the page shows of job 3."""
    last = dict(zip(result.domains, result.weights[-1], strict=True))
    final = sorted(last.items(), key=lambda item: -item[1])
    named = [domain for domain, _ in final[:NUM_NAMED]]
    named += [result.target] if result.target not in named else []
    weights = np.array(result.weights)
    paths = dict(zip(result.domains, weights.T.tolist(), strict=True))
    return {
        "result": result,
        "final": final,
        "least": {
            part: min(mean(losses[part]) for losses in result.losses.values())
            for part in ("target", "others")
        },
        "verdict": judge_mixing(result, final),
        "weights_figure": line_chart(
            [result.every * move for move in range(len(weights))],
            {domain: paths[domain] for domain in (*named, *result.domains)},
            label=f"Weight of each domain in the mixture over the steps, target {result.target}",
            x_label="steps",
            y_label="weight",
            percent=("y",),
            muted=tuple(domain for domain in result.domains if domain not in named),
        ),
    }


def judge_mixing(result: MixingResult, final: list[tuple[str, float]]) -> str:
    """Say in words what job 3 showed."""
    (first, weight), *_ = final
    aligned, uniform = (mean(result.losses[name]["target"]) for name in ("aligned", "uniform"))
    found = "It finds it" if first == result.target else "It does not find it"
    pairs = zip(result.losses["aligned"]["target"], result.losses["uniform"]["target"], strict=True)
    wins = sum(ours < theirs for ours, theirs in pairs)
    change = mean(result.losses["aligned"]["others"]) - mean(result.losses["uniform"]["others"])
    price = (
        f"The price is paid by the other domains, whose loss ends {change:.2f} higher."
        if change > 0
        else f"The other domains do not pay for it: their loss ends {-change:.2f} lower."
    )
    return (
        f"{found}: {first} ends with {as_percent(weight)} of the mixture. Held-out {result.target} "
        f"text ends at {aligned:.3f} nats a token, against {uniform:.3f} with the uniform mixture "
        f"and {result.start['target']:.3f} before; it is lower in {wins} of {len(result.seeds)} "
        f"seeds. {price}"
    )


def best(table: Mapping[str, list[float]], names: tuple[str, ...]) -> str:
    """Return the name with the largest mean."""
    return max(names, key=lambda name: mean(table[name]))


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested entries as lines."""
    lines: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.extend(flatten(value, f"{prefix}{key}."))
        else:
            lines.append((prefix + key, value))
    return lines
