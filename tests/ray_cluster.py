"""A small Ray on this machine, for the tests that need one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ray: Any = pytest.importorskip("ray")
pytest.importorskip("ray.data")

MARKS = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextmanager
def small_ray() -> Iterator[None]:
    """Start two workers, for one file of tests."""
    ray.init(
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def on_ray(rows: list[dict[str, Any]], num_blocks: int) -> Any:
    """Return rows as a dataset of so many blocks."""
    return ray.data.from_items(rows, override_num_blocks=num_blocks)
