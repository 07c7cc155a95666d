"""Every method of attribution has one file, one citation, a row of a contract and a line."""

import re
from pathlib import Path
from typing import Any

import pytest
from test_attribution_methods import perceptron
from test_ekfac import CURVATURES
from test_method_contract import ROWS, TEXT_ROWS
from test_solvers import SOLVERS

import influence

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = re.search(r"\| method \| module \| paper.*?\n\n", README, re.DOTALL)
METHODS = {
    "ConjugateGradients": "conjugate_gradients",
    "Nystroem": "nystroem",
    "Neumann": "neumann",
    "LiSSA": "lissa",
    "ASTRA": "astra",
    "Arnoldi": "arnoldi",
    "EKFAC": "ekfac",
    "KFAC": "ekfac",
    "DataInf": "datainf",
    "MFAC": "mfac",
    "TracIn": "tracin",
    "LastLayerTracIn": "tracin_last_layer",
    "GradientDot": "gradient_dot",
    "GradientCosine": "gradient_dot",
    "TRAK": "trak",
    "TRAKEnsemble": "trak_ensemble",
    "LESS": "less",
    "TrackStar": "trackstar",
    "RelatIF": "relatif",
    "SOURCE": "source",
    "RepresenterPoints": "representer",
    "RidgeLeaveOneOut": "ridge_leave_one_out",
    "LogisticLeaveOneOut": "logistic_leave_one_out",
    "Metagradients": "metagradients",
    "hypergradients": "implicit_differentiation",
    "BM25": "bm25",
    "TFIDF": "tfidf",
    "EmbeddingSimilarity": "embedding_similarity",
    "HiddenSimilarity": "hidden_similarity",
}
ELSEWHERE = {  # what gives no scores has its oracle in the test of this name
    "hypergradients": "test_hypergradients_are_what_retraining_with_other_hyperparameters_changes"
}


def kinds_under_a_contract() -> set[str]:
    """The classes of all rows, of what they wrap and of what they precondition with."""
    task, train, _ = perceptron(6)
    found: list[Any] = [*CURVATURES.values(), *(method for method, _ in TEXT_ROWS.values())]
    found += [row.make(row.problem(6)[0]) for row in ROWS.values()]
    found += [row.solver(task, train) for row in SOLVERS.values()]
    inner = [
        getattr(one, name)
        for one in found
        for name in ("metric", "method", "preconditioner")
        if hasattr(one, name)
    ]
    return {type(one).__name__ for one in [*found, *inner]}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_file_a_citation_and_a_line(name: str) -> None:
    method = getattr(influence, name)
    assert method.__module__ == f"influence.{METHODS[name]}"
    text = method.__doc__ or ""
    assert re.search(r"References:\s+\w.*(arXiv:\d{4}\.\d{4,5}|\d{4})", text, re.DOTALL)
    assert LINES is not None
    assert re.search(rf"`(influence)?\.{METHODS[name]}`", LINES[0])


def test_a_method_has_a_row_in_a_contract() -> None:
    kinds = kinds_under_a_contract()
    assert set(METHODS) - kinds == set(ELSEWHERE)
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert all(f"def {name}(" in tests for name in ELSEWHERE.values())
