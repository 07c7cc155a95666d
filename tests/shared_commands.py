"""A program of ranks: `gradsift attribute` by every method, and `gradsift components`."""

import sys
from pathlib import Path

from gradsift.cli import main

BOTH = ("first", "second")
METHODS: dict[str, list[str]] = {
    **{name: [] for name in ("ekfac", "kfac", "datainf", "mfac", "hidden-states", "bm25")},
    **{name: [] for name in ("trak", "trackstar", "cosine", "dot")},
    "tracin": ["--checkpoints", *BOTH],
    "less": ["--checkpoints", *BOTH],
    "trak-log-odds": ["--checkpoints", *BOTH],
}


def run(folder: Path, out: Path) -> None:
    for method, more in METHODS.items():
        words = ["attribute", "--data", f"{folder}/train.jsonl", "--method", method]
        words += ["--out", f"{out}/{method}.parquet", "--num-dims", "64", "--shard-size", "2"]
        words += ["--model", f"{folder}/model", "--query", "the cat sat", "a dog ran"]
        assert main([*words, *(f"{folder}/{m}" if m in BOTH else m for m in more)]) == 0, method
    words = ["components", "--model", f"{folder}/model", "--data", f"{folder}/train.jsonl"]
    words += [
        "--out",
        f"{out}/components",
        "--num-queries",
        "6",
        "--beginning",
        "0.8",
        "--shard-size",
        "2",
    ]
    assert main(words) == 0


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
