"""What the gradients in a store say of a dataset, as sections of a page.

Letters: ``n`` examples, ``k`` numbers of a row.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gradsift.direction_sections import (
    describe_opposing,
    describe_spectrum,
    describe_subspaces,
)
from gradsift.html import as_number
from gradsift.sections import NUM_GROUPS, NUM_SHOWN, Section, list_examples
from gradsift.shown_rows import ShownRows
from projections import GradientStore
from selection import (
    Coherence,
    RepeatReport,
    RowMoments,
    find_class_outliers,
    find_opposing,
    find_repeats,
    follow_subspace,
    measure_coherence,
    measure_moments,
    measure_spectrum,
)

ALL = "all"  # layers together
NOW = "this one"  # among the states of training
NUM_DIRECTIONS = 3  # whose ends are shown
NUM_COMPARED = 10  # directions that states of training are compared by
NUM_COLUMNS = 8  # groups beside each other
NUM_LAYERS = 120  # most layers of a table


def diagnose(
    store: GradientStore,
    shown: ShownRows,
    *,
    group_by: str | None = None,
    layers: Mapping[str, slice] | None = None,
    earlier: Mapping[str, GradientStore] | None = None,
) -> list[Section]:
    """Measure a dataset by its gradients.

    Args:
        store: Rows of its gradients.
        shown: The examples.
        group_by: Column of the data whose values are groups; the labels unless given.
        layers: Which dimensions of a row belong to which layer, where they are apart.
        earlier: By name, in order: stores of the same data at earlier states of training.

    Raises:
        DataError: There is no such column, or an earlier store is about other rows.
        StoreMismatchError: An earlier store has another projection.
    """
    column = shown.column(group_by)
    groups = None if column is None else [str(value) for value in column[1]]
    moments = measure_moments(store)
    history = _follow(earlier, moments) if earlier else []
    coherence = measure_coherence(store, groups, layers=layers, num_shown=NUM_SHOWN)
    sections = [
        _coherence([one for one in coherence if one.layer == ALL], column, shown),
        *_layers([one for one in coherence if one.layer != ALL]),
        describe_spectrum(measure_spectrum(moments)),
        *history,
        *describe_opposing(
            find_opposing(moments, num_directions=NUM_DIRECTIONS, num_shown=NUM_SHOWN), shown
        ),
    ]
    if groups is not None and len(set(groups)) > 1:
        sections.append(_outliers(store, groups, column, shown))
    if column is not None and group_by is None and shown.rows is not None:
        sections.append(_repeats(find_repeats(shown.rows), shown))
    return sections


def _follow(earlier: Mapping[str, GradientStore], now: RowMoments) -> list[Section]:
    """Return the section on directions over training."""
    count = min(NUM_COMPARED, now.blocks.num_dims, len(now.blocks))
    return [describe_subspaces(follow_subspace({**earlier, NOW: now}, num_directions=count))]


def _coherence(found: list[Coherence], column: Any, shown: ShownRows) -> Section:
    """Return the section on agreement."""
    rows = [
        [
            one.group,
            f"{one.num_examples:,}",
            as_number(one.coherence),
            # One example says nothing about noise.
            *(
                as_number(v) if one.num_examples > 1 else ""
                for v in (one.signal_to_noise, one.noise_scale)
            ),
        ]
        for one in found[: NUM_GROUPS + 1]
    ]
    left_out = len(found) - len(rows)
    by = f" Groups are values of {column[0]}." if column else ""
    more = f" {left_out} groups are not shown." if left_out > 0 else ""
    return Section(
        "Do gradients agree?",
        "Coherence is the number of examples that a step on one helps as much as a step on itself "
        "does: 1 if gradients have nothing in common, the number of examples if they are equal, "
        "below 1 if they cancel. The noise scale is the batch size at which the mean gradient "
        "stands out from the noise (McCandlish et al. 2018)." + by + more,
        ("group", "examples", "coherence", "signal to noise", "noise scale"),
        rows,
        lists=[
            list_examples("Agree most with all others", found[0].along, shown),
            list_examples("Agree least", found[0].against, shown),
        ],
    )


def _layers(found: list[Coherence]) -> Iterator[Section]:
    """Yield a section on the agreement of each layer, where layers are apart."""
    if not found:
        return
    layers = list(dict.fromkeys(one.layer for one in found))
    groups = list(dict.fromkeys(one.group for one in found))
    known = {(one.layer, one.group): as_number(one.coherence) for one in found}
    columns = groups[: NUM_COLUMNS + 1]
    hidden = [f"{len(layers) - NUM_LAYERS} layers"] if len(layers) > NUM_LAYERS else []
    hidden += [f"{len(groups) - len(columns)} groups"] if len(groups) > len(columns) else []
    yield Section(
        "In which layers do gradients agree?",
        "The coherence of each layer by itself, of all examples and of each group."
        + (f" {' and '.join(hidden)} are not shown." if hidden else ""),
        ("layer", *columns),
        [[layer, *(known[layer, group] for group in columns)] for layer in layers[:NUM_LAYERS]],
    )


def _outliers(store: GradientStore, groups: list[str], column: Any, shown: ShownRows) -> Section:
    """Return the section on examples that another class suits better."""
    every = find_class_outliers(store, groups)
    below = int((every.margins < 0).sum())
    found = every.first(2 * NUM_SHOWN)
    marks = [
        f"{group}, nearer to {nearest} by {-margin:.3g}"
        for group, nearest, margin in zip(found.groups, found.nearest, found.margins, strict=True)
    ]
    half = (len(found) + 1) // 2
    return Section(
        "Out of place in their group",
        f"The gradients of {below:,} of {len(every):,} examples agree more with another value of "
        f"{column[0]} than with their own: wrong labels are among the first of them, and so are "
        "hard examples.",
        lists=[
            list_examples("The oddest", found.ids[:half], shown, marks[:half]),
            list_examples("The next", found.ids[half:], shown, marks[half:]),
        ],
    )


def _repeats(found: RepeatReport, shown: ShownRows) -> Section:
    """Return the section on inputs that occur several times."""
    conflicts = found.conflicts
    rows = [
        [
            ", ".join(map(str, one.ids[:NUM_SHOWN].tolist())),
            f"{len(one.ids)}",
            ", ".join(sorted({str(label) for label in one.labels})),
        ]
        for one in (conflicts or found.groups)[:NUM_GROUPS]
    ]
    what = "inputs with different labels" if conflicts else "repeated inputs"
    return Section(
        "Repeated inputs",
        f"{len(found.groups):,} inputs occur more than once, byte for byte; {found.num_spare:,} "
        f"rows could go without a loss of inputs. {len(conflicts):,} inputs have different labels."
        + (f" Listed are {what}." if rows else ""),
        ("ids", "rows", "labels") if rows else (),
        rows,
    )
