"""Every benchmark runs, at a size at which its numbers mean nothing."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "name",
    [
        "attribution",
        "freed_memory",
        "memory",
        "gpu",
        "peers_toy",
        "plan_accuracy",
        "replay_cost",
        pytest.param("components", marks=pytest.mark.slow),
        "solvers",
        pytest.param("influence_index", marks=pytest.mark.slow),
        pytest.param("index_speed", marks=pytest.mark.slow),
        pytest.param("large_index", marks=pytest.mark.slow),
        "traker_mlp",
        pytest.param("pruning", marks=pytest.mark.slow),
        "reweighting",
        "regmix",
        pytest.param("mixture_costs", marks=pytest.mark.slow),
        pytest.param("mixtures", marks=pytest.mark.slow),
        pytest.param("text_selection", marks=pytest.mark.slow),
        "dsir_cost",
        pytest.param("choosing_a_projection", marks=pytest.mark.slow),
        pytest.param("coverage_cost", marks=pytest.mark.slow),
        pytest.param("image_selection", marks=pytest.mark.slow),
        pytest.param("gradient_index", marks=pytest.mark.slow),
        pytest.param("search_cost", marks=pytest.mark.slow),
        pytest.param("ray_cost", marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_prints_a_report_and_writes_it(name: str, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    command = [sys.executable, FOLDER / f"{name}.py", "--quick", "--threads", "1", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == out.read_text().strip()
    assert f"`python benchmarks/{name}.py --quick --threads 1`" in done.stdout
    assert "| --- |" in done.stdout


@pytest.mark.slow
def test_mnist_is_served_in_the_order_of_the_hashes_of_its_places() -> None:
    program = "from pruning_consistency import served_order as o; print(o(50).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    hashes = [int(hashlib.md5(b"train" + str(i).encode()).hexdigest(), 16) for i in range(50)]
    assert str(sorted(range(50), key=hashes.__getitem__)) in done.stdout
