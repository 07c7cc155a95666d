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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import options, publish, table
from transformers import LlamaConfig, LlamaForCausalLM

from influence import EKFAC
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
    Setting("a", 256, 1024, 4, 96),
    Setting("b", 1024, 4096, 2, 32),
)
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


def ours(
    model: LlamaForCausalLM, train: np.ndarray, queries: np.ndarray, setting: Setting, fisher: str
) -> tuple[float, float, np.ndarray]:
    """Seconds to fit and to score, and the scores."""
    task = CausalLM(model)
    rows = [{"input_ids": row} for row in train.tolist()]
    asked = [{"input_ids": row} for row in queries.tolist()]
    settings = PassSettings(batch_size=setting.batch_size, layers=LAYERS)
    start = time.perf_counter()
    fitted = EKFAC(seed=0, fisher=fisher).fit(task, rows, settings=settings)
    fit = time.perf_counter() - start
    start = time.perf_counter()
    scores = fitted.scores(task, asked, rows).values
    return fit, time.perf_counter() - start, scores


def peer(
    python: str, folder: Path, setting: Setting, *, empirical: bool
) -> tuple[float, float, np.ndarray]:
    """The same by kronfluence."""
    request = {
        "model": str(folder / "model"),
        "train": str(folder / "train.npy"),
        "queries": str(folder / "queries.npy"),
        "work": str(folder / "work"),
        "out": str(folder / "peer.npz"),
        "threads": torch.get_num_threads(),
        "empirical": empirical,
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
    return float(found["fit"]), float(found["score"]), found["scores"]


def run(setting: Setting, peer_python: str | None) -> list[list[str]]:
    """Return one row a measurement."""
    model = make_model(setting)
    generator = np.random.default_rng(0)
    shape = (setting.num_train, setting.length)
    train = generator.integers(3, setting.vocabulary, shape)
    queries = generator.integers(3, setting.vocabulary, (setting.num_queries, setting.length))
    plain_step(model, torch.from_numpy(train[: setting.batch_size]), setting.batch_size)
    plain = plain_step(model, torch.from_numpy(train), setting.batch_size)
    fit, score, _ = ours(model, train, queries, setting, "sampled")
    rows = [
        [setting.name, "gradsift", f"{fit / plain:.2f}", f"{score / plain:.2f}", "", "", ""],
    ]
    if peer_python is None:
        return rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        np.save(folder / "train.npy", train)
        np.save(folder / "queries.npy", queries)
        peer_fit, peer_score, _ = peer(peer_python, folder, setting, empirical=False)
        *_, theirs = peer(peer_python, folder, setting, empirical=True)
    *_, mine = ours(model, train, queries, setting, "empirical")
    error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
    rows[0][4:] = [f"{fit / peer_fit:.2f}", f"{score / peer_score:.2f}", f"{error:.1e}"]
    costs = [f"{peer_fit / plain:.2f}", f"{peer_score / plain:.2f}"]
    rows.append([setting.name, "kronfluence", *costs, "1.00", "1.00", ""])
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peer-python", help="python of an environment with kronfluence")
    parser.add_argument("--models", nargs="+", default=["a", "b"], help="which of a and b")
    arguments = parser.parse_args()
    rows = []
    chosen = [setting for setting in FULL if setting.name in arguments.models]
    for setting in QUICK if arguments.quick else chosen:
        rows += run(setting, arguments.peer_python)
    head = ["model", "library", "fit / plain", "scores / plain", "fit / peer", "scores / peer"]
    parts = [
        table([*head, "relative difference of scores"], rows),
        "plain: a forward and backward over the same rows, weight gradients included. The "
        "difference is that of scores under the labels of the data (empirical Fisher).",
    ]
    publish("EK-FAC beside kronfluence", parts, arguments.out)


if __name__ == "__main__":
    main()
