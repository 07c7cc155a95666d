"""Programs of these tests as ranks, started by `torchrun` or by hand."""

import os
import subprocess
import sys
from pathlib import Path
from socket import socket

ROOT = Path(__file__).parent.parent


def environment(**more: str) -> dict[str, str]:
    here = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here, **more}


def torchrun(size: int, *words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={size}", *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def start_by_hand(size: int, *words: object) -> list[subprocess.CompletedProcess[str]]:
    """Start ranks without a launcher that would stop them all."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, *map(str, words)]
    processes = [
        subprocess.Popen(
            command,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **meet),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(processes, said, strict=True)
    ]
