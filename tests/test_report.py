"""Pages about scores and stores."""

import json
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from gradsift.cli import main
from gradsift.explain import explain
from gradsift.html import as_number
from gradsift.report import write_report
from gradsift.shown_rows import find_image
from projections import (
    SJLT,
    Classification,
    DataError,
    GradientStore,
    Scores,
    index_gradients,
    read_dataset,
    write_dataset,
)
from selection import measure_coherence

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


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A store of the gradients of small images, and the images with their labels."""
    torch.manual_seed(0)
    images = torch.rand(24, 6, 6) + 3 * (torch.arange(24) % 2)[:, None, None]
    labels = [i % 2 for i in range(24)]
    labels[5] = 0  # wrong
    rows = [(image.flatten(), label) for image, label in zip(images, labels, strict=True)]
    task = Classification(nn.Linear(36, 2))
    index_gradients(task, rows, SJLT(num_dims=16, seed=0), path=tmp_path / "store")
    data = [
        {"id": i, "pixels": image.tolist(), "label": label}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    data[7]["pixels"] = data[2]["pixels"]  # one input with two labels
    write_dataset(datasets.Dataset.from_list(data), tmp_path / "data.jsonl")
    return tmp_path / "store", tmp_path / "data.jsonl"


def test_a_report_on_a_store_says_what_gradients_tell_of_the_data(
    pictures: tuple[Path, Path],
) -> None:
    store, data = pictures
    text = write_report(store, data=data).read_text()
    for title in ("Do gradients agree?", "In how many directions", "Opposing signals 1"):
        assert title in text
    assert "Out of place in their group" in text
    assert "1, nearer to" in text or "0, nearer to" in text
    assert "1 inputs have different labels" in text
    assert ">2, 7</th>" in text
    assert 'src="data:image/png;base64,' in text
    addresses = Addresses(text).found
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_a_report_compares_layers_and_states_of_training(
    pictures: tuple[Path, Path], scores: Path
) -> None:
    store, data = pictures
    layers = {"first": slice(0, 8), "second": slice(8, 16)}
    plain = write_report(store, data=data).read_text()
    assert "In which layers" not in plain and "Do the directions stay?" not in plain
    text = write_report(store, data=data, layers=layers, earlier={"early": store}).read_text()
    _, *sections = text.split("<section")
    (section,) = [part for part in sections if "In which layers do" in part]
    expected = measure_coherence(GradientStore.open(store), layers=layers)
    for one in expected[1:]:
        assert (
            f'<th scope="row">{one.layer}</th><td class="num">{as_number(one.coherence)}' in section
        )
    (section,) = [part for part in sections if "Do the directions stay?" in part]
    assert section.count('<td class="num">1.00</td>') == 4
    with pytest.raises(ValueError, match=r"`earlier` states must be compared with a finished"):
        write_report(scores, earlier={"early": store})


def test_layers_and_groups_that_are_not_shown_are_counted(
    pictures: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = pictures
    for name in ("NUM_LAYERS", "NUM_COLUMNS"):
        monkeypatch.setattr(f"gradsift.diagnosis.{name}", 1)
    layers = {str(place): slice(place, place + 1) for place in range(4)}
    text = write_report(store, data=data, layers=layers).read_text()
    assert "3 layers and 1 groups are not shown." in text


def test_groups_are_compared_by_any_column(pictures: tuple[Path, Path]) -> None:
    store, data = pictures
    assert "Groups are values of label." in write_report(store, data=data).read_text()
    with pytest.raises(DataError, match="must have the column 'colour'"):
        write_report(store, data=data, group_by="colour")
    with pytest.raises(DataError, match="'label' must come from the data"):
        write_report(store, group_by="label")
    assert "Out of place" not in write_report(store).read_text()


def test_all_that_is_known_of_an_example(pictures: tuple[Path, Path], scores: Path) -> None:
    store, data = pictures
    found = explain("7", [store], data)
    opened = GradientStore.open(store)
    rows = np.concatenate(list(opened.blocks())).astype(float)
    cosines = rows @ rows[7] / opened.column("grad_norm") / np.linalg.norm(rows[7])
    order = [row for row in np.argsort(-cosines) if row != 7]
    assert [one.id for one in found.alike] == order[:5]
    assert [one.id for one in found.opposed] == order[::-1][:5]
    np.testing.assert_allclose([one.cosine for one in found.alike], cosines[order[:5]], rtol=1e-4)
    loss = next(one for one in found.standings if one.name == "loss")
    losses = opened.column("loss")
    assert loss.value == losses[7]
    assert loss.rank == 1 + int((losses > losses[7]).sum())
    assert loss.below == (losses < losses[7]).mean()
    assert found.repeats == [(2, "0")]
    assert found.group is not None
    assert "rows with the same input:" in list(found.lines())
    both = explain("7", [scores, store])
    assert {one.source for one in both.standings} == {"scores.parquet", "store"}
    assert both.text == ""
    with pytest.raises(DataError, match="must have the example 'x'"):
        explain("x", [store])


def test_an_example_is_explained_on_the_command_line(
    pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, data = pictures
    words = ["explain", "7", store, "--data", data, "--out", tmp_path / "seven.json"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert "example 7" in shown
    assert "gradients most alike:" in shown
    assert json.loads((tmp_path / "seven.json").read_text())["id"] == 7
    assert main(["explain", "7"]) == 1
    assert "`sources` must name a table of scores or an index" in capsys.readouterr().err


def test_an_explanation_reads_its_data_once(
    pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = pictures
    loss = tmp_path / "loss.parquet"
    Scores(np.arange(24), {"other": np.arange(24.0)}).save(loss)
    known, read = read_dataset, []
    for module in ("explain", "shown_rows"):
        monkeypatch.setattr(
            f"gradsift.{module}.read_dataset", lambda path: read.append(path) or known(path)
        )
    found = explain("7", [store, loss], data)
    assert read == [data] and found.group is not None and found.repeats


def test_images_are_known_by_their_shape() -> None:
    assert find_image({"a": [[1.0] * 8] * 8})[0] == "a"
    assert find_image({"a": np.zeros((8, 8, 3))})[0] == "a"
    for other in (
        [1.0] * 8,
        [["x"] * 8] * 8,
        [[1.0] * 2] * 2,
        np.full((8, 8), np.nan),
        [[1], [1, 2]],
    ):
        assert find_image({"a": other}) == (None, None)


# Six hundred letters are 19 lines of a phone, and are shown whole.
@pytest.mark.parametrize(
    ("text", "stops"), [("short", 0), ("one two three " * 60, 0), ("a line\n" * 30, 32)]
)
def test_only_texts_that_can_scroll_stop_the_tab_key(
    scores: Path, tmp_path: Path, text: str, stops: int
) -> None:
    rows = [{"id": i, "text": text} for i in range(20)]
    write_dataset(datasets.Dataset.from_list(rows), tmp_path / "data.jsonl")
    page = Page(write_report(scores, data=tmp_path / "data.jsonl").read_text())
    found = [own for tag, own in page.elements if tag == "pre"]
    reached = [own for own in found if "tabindex" in own]
    assert (len(found), len(reached)) == (32, stops)
    assert all(own["role"] == "region" and own["aria-label"] for own in reached)


def test_a_page_can_be_used_by_keyboard(pictures: tuple[Path, Path]) -> None:
    store, data = pictures
    text = write_report(store, data=data).read_text()
    page = Page(text)
    ids = [own["id"] for _, own in page.elements if "id" in own]
    assert len(ids) == len(set(ids))
    links = [own["href"] or "" for tag, own in page.elements if tag == "a"]
    assert links[0] == "#main" and {link[1:] for link in links} <= set(ids)
    sections = {own["id"] for tag, own in page.elements if tag == "section"}
    assert sections == {link[1:] for link in links[1:]}
    # What is reached by the Tab key comes in the order of the page, and has a name.
    reached = [own for _, own in page.elements if "tabindex" in own]
    assert all(own["tabindex"] == "0" and own["aria-label"] for own in reached)
    assert not any(name.startswith("on") for _, own in page.elements for name in own)
    assert ":focus-visible { outline: 3px" in text and "outline: none" not in text
    images = [own for tag, own in page.elements if tag == "img"]
    assert images and all(own["alt"] for own in images)


class Page(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


class Addresses(HTMLParser):
    """All addresses that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        assert "@import" not in text and "url(" not in text.replace("url(#", "")
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href")]
