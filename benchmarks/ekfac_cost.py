"""EK-FAC: time to fit and to score, and agreement, beside kronfluence in the same run.

    python benchmarks/ekfac_cost.py --peer-python PEER/bin/python

The peer lives in an environment of its own, made with ``pip install torch==2.13.0
transformers datasets`` and ``pip install --no-deps kronfluence einops einconv opt_einsum
accelerate``. Both sides see the same weights, tokens, batches and threads; kronfluence
counts its whole process but for imports and loading, and so does gradsift.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measuring import options, parse, publish, table
from transformers import LlamaConfig, LlamaForCausalLM

from influence import EKFAC, FittedCurvature, make_plan
from influence.ekfac import FisherName
from projections import CausalLM, PassSettings

LAYERS = ("*_proj",)


@dataclass(frozen=True)
class Setting:
    """One model and one amount of data."""

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_train: int
    vocabulary: int = 4096
    length: int = 128
    num_queries: int = 32
    batch_size: int = 8


FULL = (
    Setting("a", 256, 1024, 4, 384),
    Setting("b", 1024, 4096, 2, 96),
)
SIDE = 2048  # of the square product that rates are compared with
QUICK = (Setting("quick", 32, 64, 2, 16, vocabulary=64, length=16, num_queries=4),)


def make_model(setting: Setting) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.num_layers,
        num_attention_heads=max(2, setting.hidden // 64),
        vocab_size=setting.vocabulary,
        max_position_embeddings=setting.length,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def plain_step(model: LlamaForCausalLM, tokens: torch.Tensor, batch_size: int) -> float:
    """Seconds of a plain forward and backward, weight gradients included, over all rows."""
    start = time.perf_counter()
    for batch in tokens.split(batch_size):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum")
        loss.backward()
        model.zero_grad()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timed:
    """Seconds and results of one library.

    Args:
        fit: Seconds of the fit.
        score: Seconds of the scores.
        scores: The scores.
        decompositions: Seconds of the eigendecompositions within the fit; ours are done once more.
    """

    fit: float
    score: float
    scores: np.ndarray
    decompositions: float = float("nan")


def ours(
    model: LlamaForCausalLM,
    train: np.ndarray,
    queries: np.ndarray,
    setting: Setting,
    fisher: FisherName,
) -> Timed:
    """Fit and score by gradsift."""
    task = CausalLM(model)
    rows, asked = as_rows(train), as_rows(queries)
    settings = PassSettings(batch_size=setting.batch_size, layers=LAYERS)
    start = time.perf_counter()
    fitted = EKFAC(seed=0, fisher=fisher).fit(task, rows, settings=settings)
    fit = time.perf_counter() - start
    start = time.perf_counter()
    scores = fitted.scores(task, asked, rows).values
    return Timed(fit, time.perf_counter() - start, scores, decompose(fitted))


def as_rows(tokens: np.ndarray) -> list[dict[str, list[int]]]:
    """Return rows as the task reads them."""
    return [{"input_ids": row} for row in tokens.tolist()]


def decompose(fitted: FittedCurvature) -> float:
    """Return the seconds of eigendecompositions of the widths of a fit, in float64."""
    sides = {id(s): s.size for layer in fitted.layers.values() for s in (layer.left, layer.right)}
    widths = list(sides.values())
    spent = {}
    for width in set(widths):
        rows = torch.randn(width, width, dtype=torch.float64)
        start = time.perf_counter()
        torch.linalg.eigh(rows @ rows.mT)
        spent[width] = time.perf_counter() - start
    return sum(spent[width] for width in widths)


def product_rate() -> float:
    """Return the multiply-adds a second of a square product in float32."""
    square = torch.randn(SIDE, SIDE)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        _ = square @ square
        best = min(best, time.perf_counter() - start)
    return SIDE**3 / best


def shares(
    model: LlamaForCausalLM, train: np.ndarray, setting: Setting, timed: Timed
) -> tuple[str, str]:
    """Return the shares of the product rate that fit and scores reach, as counted by the plan."""
    settings = PassSettings(batch_size=setting.batch_size, layers=LAYERS)
    plan = make_plan(
        CausalLM(model),
        as_rows(train),
        memory="16GB",
        num_queries=setting.num_queries,
        settings=settings,
    )
    counted = {stage.name.partition(",")[0]: stage.operations for stage in plan.stages}
    # The head is not in the plan, since it has no factors; each pass runs it both ways.
    head = 2 * setting.hidden * setting.vocabulary * setting.length * setting.num_train
    fit = counted["covariances"] + counted["corrected eigenvalues"] + 2 * head
    score = counted["query gradients"] + counted["scores"] + head
    rate = product_rate()
    spent = timed.fit - timed.decompositions
    return f"{fit / spent / rate:.0%}", f"{score / timed.score / rate:.0%}"


def peer(python: str, folder: Path, setting: Setting) -> Timed:
    """Fit and score by kronfluence."""
    request = {
        "model": str(folder / "model"),
        "train": str(folder / "train.npy"),
        "queries": str(folder / "queries.npy"),
        "work": str(folder / "work"),
        "out": str(folder / "peer.npz"),
        "threads": torch.get_num_threads(),
        "empirical": True,
        "batch_size": setting.batch_size,
        "num_queries": setting.num_queries,
    }
    (folder / "request.json").write_text(json.dumps(request))
    script = Path(__file__).parent / "kronfluence_peer.py"
    done = subprocess.run(
        [python, str(script), str(folder / "request.json")], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the peer must run. It ended with:\n{done.stderr[-2000:]}")
    found = np.load(folder / "peer.npz")
    times = {name: float(found[name]) for name in ("fit", "score", "decompositions")}
    return Timed(scores=found["scores"], **times)


def run(setting: Setting, peer_python: str | None) -> list[list[str]]:
    """Return one row a measurement."""
    model = make_model(setting)
    generator = np.random.default_rng(0)
    shape = (setting.num_train, setting.length)
    train = generator.integers(3, setting.vocabulary, shape)
    queries = generator.integers(3, setting.vocabulary, (setting.num_queries, setting.length))
    plain_step(model, torch.from_numpy(train[: setting.batch_size]), setting.batch_size)
    plain = plain_step(model, torch.from_numpy(train), setting.batch_size)
    mine = ours(model, train, queries, setting, "empirical")
    rates = shares(model, train, setting, mine)
    row = [setting.name, "gradsift", *costs(mine, plain), *[""] * 3, f"{mine.decompositions:.0f} s"]
    rows = [[*row, *rates, ""]]
    if peer_python is None:
        return rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        np.save(folder / "train.npy", train)
        np.save(folder / "queries.npy", queries)
        theirs = peer(peer_python, folder, setting)
    error = np.linalg.norm(mine.scores - theirs.scores) / np.linalg.norm(theirs.scores)
    rest = (mine.fit - mine.decompositions) / (theirs.fit - theirs.decompositions)
    ratios = [f"{mine.fit / theirs.fit:.2f}", f"{rest:.2f}", f"{mine.score / theirs.score:.2f}"]
    rows[0][4:7], rows[0][-1] = ratios, f"{error:.1e}"
    apart = f"{theirs.decompositions:.0f} s"
    rows.append([setting.name, "kronfluence", *costs(theirs, plain), *"111", apart, "", "", ""])
    return rows


def costs(timed: Timed, plain: float) -> list[str]:
    """Return fit and scores in plain passes."""
    return [f"{timed.fit / plain:.2f}", f"{timed.score / plain:.2f}"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peer-python", help="python of an environment with kronfluence")
    parser.add_argument("--models", nargs="+", default=["a", "b"], help="which of a and b")
    parser.add_argument("--num-train", type=int, help="sequences, other than the default")
    parser.add_argument("--batch-size", type=int, help="sequences that run together, on both sides")
    arguments = parse(parser)
    rows = []
    given = {"num_train": arguments.num_train, "batch_size": arguments.batch_size}
    changed = {name: value for name, value in given.items() if value is not None}
    chosen = [replace(setting, **changed) for setting in FULL if setting.name in arguments.models]
    for setting in QUICK if arguments.quick else chosen:
        rows += run(setting, arguments.peer_python)
    head = ["model", "library", "fit / plain", "scores / plain", "fit / peer"]
    head += ["the same without eigendecompositions", "scores / peer", "eigendecompositions"]
    head += ["rate of the rest", "rate of scores", "difference"]
    parts = [
        table(head, rows),
        "plain: a forward and backward over the same rows, weight gradients included. Rates are "
        f"the multiply-adds that `make_plan` counts, a second, over those of a product of {SIDE} x "
        f"{SIDE}; eigendecompositions run in float64 and are timed apart. Both fit the empirical "
        "Fisher, so that their scores can be compared.",
        "; ".join(
            f"{s.name}: hidden {s.hidden}, intermediate {s.intermediate}, {s.num_layers} layers, "
            f"{s.num_train} sequences of {s.length} in batches of {s.batch_size}, {s.num_queries} "
            "queries"
            for s in (QUICK if arguments.quick else chosen)
        ),
    ]
    publish("EK-FAC beside kronfluence", parts, arguments.out)


if __name__ == "__main__":
    main()
