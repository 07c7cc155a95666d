"""The peer of `coverage_cost.py`: grad-info-opt and apricot-select, run in their environment.

Reads arrays, runs one part, prints one line of JSON with seconds and results.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["quantize", "fit", "facility"])
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--count", type=int, help="clusters, or rows to choose")
    parser.add_argument("--picks", type=int, help="picks of fit")
    parser.add_argument(
        "--neighbours", type=int, help="neighbours of a sparse graph; else all pairs"
    )
    chosen = parser.parse_args()
    arrays = np.load(chosen.arrays)
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints every step
        result = {"quantize": quantize, "fit": fit, "facility": facility}[chosen.part](
            arrays, chosen
        )
    print("\n" + json.dumps(result))


def open_package(num_dims: int) -> Any:
    """Return the package's object, on as many cores as there are."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false")
    spark.config("spark.driver.memory", "6g").getOrCreate().sparkContext.setLogLevel("ERROR")
    from GIO.GIOKL import GIOKL

    return GIOKL(dim=num_dims)


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it started, as Java."""
    import psutil

    here = psutil.Process()
    times = [one.cpu_times() for one in [here, *here.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def quantize(arrays: Any, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time k-means on half of the rows and on all of them; starting Spark is not counted.

    The last run's rounds and mean squared distance to a centroid come with it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = arrays["rows"]
    package = open_package(rows.shape[1])
    seconds, processor, sizes = [], [], [len(rows) // 4, len(rows) // 2, len(rows)]
    with tempfile.TemporaryDirectory() as folder:
        for number, size in enumerate(sizes):
            path = f"{folder}/{number}.parquet"
            features = pa.array(list(rows[:size].astype(np.float64)))
            pq.write_table(pa.table({"id": np.arange(size), "features": features}), path)
            frame, _ = package.read_data_from_parquet(path, path)
            frame = frame.cache()
            frame.count()
            began, spent = perf_counter(), cpu_seconds()
            # The first run only warms up the virtual machine, and has few clusters.
            model, labelled = package._return_kmeans(frame, chosen.count if number else 8, 234)
            labelled.select("prediction").toPandas()
            seconds.append(perf_counter() - began)
            processor.append(cpu_seconds() - spent)
            rounds, cost = model.summary.numIter, model.summary.trainingCost / size
    times = {"sizes": sizes[1:], "seconds": seconds[1:], "cpu": processor[1:]}
    return {**times, "rounds": rounds, "cost": cost}


def fit(arrays: Any, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time the greedy loop from a given start; return what it picked."""
    random.seed(0)
    package = open_package(arrays["rows"].shape[1])
    import jax.numpy as jnp

    rows, target, start = (jnp.array(arrays[name]) for name in ("rows", "target", "start"))
    began, spent = perf_counter(), cpu_seconds()
    kept, values, _ = package.fit(
        rows, target, D=start, max_iter=chosen.count - 1, stop_criterion="data_size"
    )
    seconds, processor = perf_counter() - began, cpu_seconds() - spent
    picked = np.asarray(kept)[len(start) :]
    where = [int(np.abs(arrays["rows"] - one).sum(axis=1).argmin()) for one in picked]
    values = [float(value) for value in values]
    return {"seconds": seconds, "cpu": processor, "picks": where, "values": values}


def facility(arrays: Any, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time facility location over all pairs, by the fastest exact optimizer of the package.

    Its graphs of neighbours are made from the same matrix of all pairs, so they save no time.
    """
    from apricot import FacilityLocationSelection

    rows = arrays["rows"].astype(np.float64)
    FacilityLocationSelection(2, metric="euclidean", optimizer="lazy").fit(rows[:50])  # compiles
    began, spent = perf_counter(), cpu_seconds()
    selector = FacilityLocationSelection(chosen.count, metric="euclidean", optimizer="lazy")
    selector.fit(rows)
    seconds, processor = perf_counter() - began, cpu_seconds() - spent
    return {"seconds": seconds, "cpu": processor, "picks": selector.ranking.tolist()}


if __name__ == "__main__":
    main()
