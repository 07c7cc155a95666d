"""The demo on tiny sizes: every job, the page and the summary."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsift.corpus import CorpusSettings, build_corpus
from gradsift.demo import DemoSettings, run_demo
from gradsift.digits import METHODS, DigitsSettings, run_digits, split_digits
from gradsift.language_model import ModelSettings
from gradsift.mixing import MixingSettings
from gradsift.passages import BASELINE, PassagesSettings
from projections import DataError

TINY = DemoSettings(
    digits=DigitsSettings(
        num_train=300, channels=(4, 8), epochs=3, score_epochs=(1, 3), score_epoch=3, num_dims=64
    ),
    corpus=CorpusSettings(
        packages=("http", "logging", "nowhere"),
        vocab_size=300,
        length=32,
        num_train=12,
        num_held_out=4,
    ),
    model=ModelSettings(hidden_size=16, num_layers=1, num_heads=2, steps=4),
    passages=PassagesSettings(num_queries=1, k=3, num_dims=64, num_shown=2),
    mixing=MixingSettings(steps=4, every=2, num_compared=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    before = torch.random.get_rng_state()
    report = run_demo(out, seed=3, num_seeds=2, say=said.append, settings=TINY)
    assert report == out / "report.html"
    assert torch.equal(before, torch.random.get_rng_state())
    assert any("digits" in line for line in said) and any("mixing" in line for line in said)
    return out


def test_summary_holds_every_number_of_the_jobs(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["digits"]["seeds"] == summary["mixing"]["seeds"] == [3, 4]
    assert {len(values) for values in summary["digits"]["accuracy"].values()} == {2}
    assert set(summary["digits"]["auc"]) == set(METHODS)
    assert {BASELINE, "chance", "trak"} <= set(summary["passages"]["domain_share"])
    weights = np.array(summary["mixing"]["weights"])
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_summary_is_the_same_again_but_for_the_time(folder: Path, tmp_path: Path) -> None:
    run_demo(tmp_path, seed=3, num_seeds=2, say=lambda line: None, settings=TINY)
    first, second = (
        {**json.loads((path / "summary.json").read_text()), "seconds": 0}
        for path in (folder, tmp_path)
    )
    assert first == second


def test_page_shows_the_jobs_and_needs_nothing_else(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.addresses and all(a.startswith(("#", "data:")) for a in page.addresses)
    assert {"prune", "retrieve", "reweight", "settings"} <= page.ids
    assert page.headings[0] == 1 and max(page.headings) <= 4
    assert page.unlabelled == []


def test_package_that_this_python_lacks_is_left_out(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["text"]["domains"] == ["manual", "http", "logging"]


def test_oracle_trains_without_exactly_the_wrong_labels() -> None:
    data = split_digits(TINY.digits, seed=0)
    assert data.flipped.sum() == 30
    assert len(data.images) == 300


def test_scores_find_wrong_labels_far_better_than_chance() -> None:
    settings = replace(TINY.digits, channels=(8, 16), epochs=5, score_epochs=(5,), score_epoch=5)
    result = run_digits(settings, seeds=[0], say=lambda line: None)
    assert min(values[0] for values in result.auc.values()) > 0.8


def test_corpus_without_enough_text_says_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"must ship at least two packages"):
        build_corpus(replace(TINY.corpus, num_train=10**9), seed=0)


class Page(HTMLParser):
    """Collects what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.headings: list[int] = []
        self.unlabelled: list[str] = []
        assert "@import" not in text and "url(" not in text.replace("url(#", "")
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[key] or "" for key in ("src", "href") if key in given]
        if given.get("id"):
            assert given["id"] not in self.ids
            self.ids.add(str(given["id"]))
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        label = {"img": "alt", "svg": "aria-label"}.get(tag)
        if label is not None and not given.get(label):
            self.unlabelled.append(tag)
