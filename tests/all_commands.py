"""A program of one rank or several: every command but the demo and `components`, one
after the other.

Each is said on a line of its own before it runs, in words that do not hang on the folder.
"""

import os
import sys
from pathlib import Path

from gradsift.cli import main
from projections import current_ranks


def lines_of(folder: Path) -> list[list[str]]:
    """Return the command lines; paths are relative to the folder they write to."""
    data, model = f"{folder}/train.jsonl", ["--model", f"{folder}/model"]
    few = ["--num-dims", "8", "--shard-size", "2"]
    index = ["index", *model, "--data", data, *few]
    return [
        [*index, "--out", "index"],
        [*index, "--out", "ekfac", "--rows", "ekfac"],
        ["retrieve", "ekfac", "--query", "the cat", "-k", "2", "--out", "hits.jsonl"],
        ["store-index", "index", "--faiss", "IVF2,SQ8_direct_signed", "--part-rows", "2"],
        ["retrieve", "index", "--query", "a dog", "-k", "2", "--out", "near.jsonl"],
        ["score", *model, "--data", data, "--method", "loss", "grad-norm", "--out", "s.parquet"],
        [
            "prune",
            "s.parquet",
            "--data",
            data,
            "--column",
            "loss",
            "--keep",
            "0.5",
            "--out",
            "k.jsonl",
        ],
        ["report", "s.parquet"],
        ["explain", "r1", "s.parquet", "index", "--data", data],
        ["attribute", "--data", data, "--query", "a", "--method", "tfidf", "--out", "a.parquet"],
        ["dsir", "--raw", data, "--target", data, "--num", "4", "--out", "d.jsonl"],
        [
            "gio",
            "--raw",
            data,
            "--target",
            data,
            "--num-dims",
            "2",
            "--num",
            "3",
            "--out",
            "g.jsonl",
        ],
        ["cover", "--data", data, "--num-dims", "2", "--num", "3", "--out", "c.jsonl"],
        ["dedup", "--data", data, "--num-dims", "2", "--num-clusters", "2", "--out", "u.jsonl"],
        ["plan", *model, "--num-examples", "10", "--num-tokens", "4", "--machine", "h100"],
        ["store-verify", "index"],
        ["store-delete", "index", "--ids", "r3"],
        ["store-compact", "index"],
        ["store-merge", "index", "--out", "merged"],
    ]


def walk(folder: Path, out: Path) -> None:
    """Run them all; the next begins when all ranks are through."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    for words in lines_of(folder):
        if current_ranks().is_first:
            sys.stdout.write(f"$ {words[0]}\n")
        assert main(words) == 0, words
        current_ranks().barrier("the next command")


if __name__ == "__main__":
    walk(Path(sys.argv[1]), Path(sys.argv[2]))
