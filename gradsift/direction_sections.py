"""What the directions of gradients say of a dataset, as sections of a page."""

from collections.abc import Iterator

from gradsift.figures import line_chart
from gradsift.html import align_numbers, as_number, as_percent
from gradsift.sections import Section, list_examples
from gradsift.shown_rows import ShownRows
from selection import OpposingGroups, Spectrum, SubspaceHistory


def describe_spectrum(found: Spectrum) -> Section:
    """Return the section on directions."""
    count = min(len(found.eigenvalues), 100)
    explained = found.explained[:count].tolist()
    figure = line_chart(
        list(range(1, count + 1)),
        {"explained": explained},
        label="Share of all squared gradient norms along the first directions",
        x_label="directions",
        y_label="share",
        percent=("y",),
    )
    return Section(
        "In how many directions do gradients lie?",
        "The effective dimension is the number of equally strong directions that would spread as "
        "much. A few directions mean a few groups of examples that move the model together.",
        ("measure", "value"),
        [
            ["effective dimension", as_number(found.effective_dimension)],
            ["stable rank", as_number(found.stable_rank)],
            ["numbers a row", f"{len(found.eigenvalues):,}"],
        ],
        figure,
        "Share of all squared norms along the first directions together.",
    )


def describe_opposing(found: list[OpposingGroups], shown: ShownRows) -> Iterator[Section]:
    """Yield a section for each direction along which gradients pull both ways."""
    for number, one in enumerate(found, 1):
        yield Section(
            f"Opposing signals {number}",
            f"Along this direction lie {as_percent(one.share)} of all squared gradient norms, and "
            f"{as_percent(one.cancelled)} of it cancels: what helps one side hurts the other "
            "(Rosenfeld and Risteski 2024). Look at what each side shares.",
            lists=[
                list_examples(
                    "One side", one.positive, shown, align_numbers(one.positive_products.tolist())
                ),
                list_examples(
                    "Other side", one.negative, shown, align_numbers(one.negative_products.tolist())
                ),
            ],
        )


def describe_subspaces(found: SubspaceHistory) -> Section:
    """Return the section on directions over training."""
    rows = [
        [name, as_number(dimension), *(f"{overlap:.2f}" for overlap in own)]
        for name, dimension, own in zip(
            found.names, found.effective_dimensions, found.overlaps, strict=True
        )
    ]
    return Section(
        "Do the directions stay?",
        f"The {found.num_directions} strongest directions of each state of training beside those "
        "of the others: an overlap of 1 is the same directions, 0 none in common, and by chance "
        f"it is {found.chance:.2f}. Where it is large, training moves in few directions that do "
        "not change (Gur-Ari et al. 2018).",
        ("state", "effective dimension", *(f"overlap with {name}" for name in found.names)),
        rows,
    )
