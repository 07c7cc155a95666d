"""EK-FAC by kronfluence, run in an environment of its own by `ekfac_cost.py`.

Reads a request (JSON) that names a model folder and token files; writes scores and times.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from transformers import AutoModelForCausalLM


class LanguageTask(Task):
    """Summed next-token loss, with labels sampled from the model where asked."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def compute_train_loss(self, batch, model, sample=False):
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].reshape(-1, self.vocabulary)
        labels = batch["input_ids"][:, 1:].reshape(-1)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(-1), 1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.names


class Tokens(torch.utils.data.Dataset):
    """Rows of tokens."""

    def __init__(self, path: str) -> None:
        self.tokens = torch.from_numpy(np.load(path))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[row]}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(request["model"])
    model.config.use_cache = False
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    task = LanguageTask(names)
    task.vocabulary = model.config.vocab_size
    model = prepare_model(model.eval(), task)
    analyzer = Analyzer(
        "peer", model, task, cpu=True, output_dir=request["work"], disable_tqdm=True
    )
    factor_args = FactorArguments(
        strategy="ekfac", use_empirical_fisher=request["empirical"], has_shared_parameters=False
    )
    given = {"factor_args": factor_args, "overwrite_output_dir": True}
    data = {"dataset": Tokens(request["train"]), "per_device_batch_size": request["batch_size"]}
    # What `fit_all_factors` does, taken apart to time its middle.
    start = time.perf_counter()
    analyzer.fit_covariance_matrices("factors", **data, **given)
    before = time.perf_counter()
    analyzer.perform_eigendecomposition("factors", **given)
    decompositions = time.perf_counter() - before
    analyzer.fit_lambda_matrices("factors", **data, **given)
    fit = time.perf_counter() - start
    start = time.perf_counter()
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        query_dataset=Tokens(request["queries"]),
        train_dataset=Tokens(request["train"]),
        per_device_query_batch_size=request["num_queries"],
        per_device_train_batch_size=request["batch_size"],
        score_args=ScoreArguments(damping_factor=None),
        overwrite_output_dir=True,
    )
    score = time.perf_counter() - start
    scores = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy()
    times: dict[str, Any] = {"fit": fit, "score": score, "decompositions": decompositions}
    np.savez(request["out"], scores=scores, **times)


if __name__ == "__main__":
    main()
