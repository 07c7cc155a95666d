"""Pages about scores and stores."""

from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from gradsift.report import write_report
from projections import (
    SJLT,
    Classification,
    DataError,
    Scores,
    index_gradients,
    write_dataset,
)

NASTY = "<script>alert('&')</script>"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    values = np.linspace(-1, 1, 20)
    path = tmp_path / "scores.parquet"
    columns = {"loss": values, "grad-norm": values**2}
    Scores(np.arange(20), columns, provenance={"score": {"model": NASTY}}).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": i, "text": f"{NASTY} {i}", "label": i % 3} for i in range(20)]
    path = tmp_path / "data.jsonl"
    write_dataset(datasets.Dataset.from_list(rows), path)
    return path


def test_scores_page_shows_both_ends_with_their_text_escaped(scores: Path, data: Path) -> None:
    page = write_report(scores, data=data)
    text = page.read_text()
    assert page == scores.with_name("scores.parquet.report.html")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt; 19" in text
    assert "&lt;/script&gt; 0" in text and "label <b>1</b>" in text


def test_scores_page_needs_nothing_else(scores: Path) -> None:
    addresses = Addresses(write_report(scores).read_text()).found
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)


def test_page_of_a_store_shows_its_columns_and_its_origin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Classification(nn.Linear(4, 3))
    rows = [(torch.randn(4), i % 3) for i in range(12)]
    path = tmp_path / "store"
    store = index_gradients(task, rows, SJLT(num_dims=8, seed=0), path=path)
    text = write_report(path, out=tmp_path / "page.html").read_text()
    assert "grad_norm" in text and "loss" in text
    assert store.manifest["model"] in text


def test_scores_of_pairs_are_averaged_over_the_queries(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    values = np.arange(12.0).reshape(2, 6)
    Scores(np.arange(6), {"trak": values}, query_ids=np.arange(2)).save(path)
    assert "The mean over 2 queries." in write_report(path).read_text()


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    Scores(np.arange(4), {"loss": np.array([1.0, np.nan, 2.0, 3.0])}).save(path)
    assert "1 values are not finite" in write_report(path).read_text()


def test_other_data_than_was_scored_is_refused(scores: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    write_dataset(datasets.Dataset.from_list([{"id": 0, "text": "x"}]), other)
    with pytest.raises(DataError, match=r"19 of 20 are missing, such as \[1, 2, 3, 4, 5\]"):
        write_report(scores, data=other)


def test_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.parquet must be a table of scores"):
        write_report(tmp_path / "nothing.parquet")


class Addresses(HTMLParser):
    """All addresses that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        assert "@import" not in text and "url(" not in text.replace("url(#", "")
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href")]
