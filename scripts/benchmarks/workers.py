"""What benchmarks share: workers that are measured in turns, their virtual environments, results.

A worker is a script in a process of its own. It prints one line of JSON when it is ready, then does
one piece of work for each line it reads and prints what it measured, so that programs with
different dependencies can be timed alternately on one machine.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
THREADS = 2


def environment(name: str, *requirements: str) -> str:
    """The interpreter of a virtual environment with these packages; made if there is none."""
    folder = ROOT / ".benchmarks" / name
    python, finished = folder / "bin" / "python", folder / "finished"
    if not finished.exists():
        print(f"installing {', '.join(requirements)} in {folder.name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *requirements], check=True, stdout=sys.stderr)
        finished.touch()
    return str(python)


class Worker:
    """A script in another process; `ready` is what it said when it was."""

    def __init__(self, python: str, script: str, *arguments: Any):
        command = [python, str(Path(__file__).parent / script), *map(str, arguments)]
        threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            command,
            env=os.environ | threads | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()

    def __call__(self, request: str = "step") -> dict[str, Any]:
        """Asks for a piece of work and waits for its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a worker ended with exit code {self._process.wait()}")


def serve(ready: dict[str, Any], work: Callable[[str], dict[str, Any]]) -> None:
    """A worker's loop: every answer gets its wall time in seconds and the peak memory in GiB."""
    print(json.dumps(ready | {"peak_gib": peak_gib()}), flush=True)
    for request in sys.stdin:
        start = time.perf_counter()
        figures = work(request.strip())
        taken = {"seconds": time.perf_counter() - start, "peak_gib": peak_gib()}
        print(json.dumps(taken | figures), flush=True)


def peak_gib() -> float:
    """The most memory this process has held (`getrusage` would count its parent's before exec)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


def count_compilation() -> Callable[[], float]:
    """From now on, the seconds JAX takes to trace, lower and compile; call it to know them."""
    import jax

    taken = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            taken.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: sum(taken)


def versions(*packages: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "python": platform.python_version(),
    }


def in_turns(workers: dict[str, Worker], rounds: int, warm_up: int = 1) -> dict[str, list[dict]]:
    """What each worker measured, A B A B, without its first answers."""
    found: dict[str, list[dict]] = {name: [] for name in workers}
    for number in range(warm_up + rounds):
        for name, worker in workers.items():
            figures = worker()
            print(f"{name}: {figures['seconds']:.3f} s", file=sys.stderr, flush=True)
            if number >= warm_up:
                found[name].append(figures)
    return found


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and range."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"median": middle, "low": ordered[0], "high": ordered[-1]}


def read(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def is_measured(name: str) -> bool:
    """Whether a benchmark has written its results."""
    return (RESULTS / f"{name}.json").is_file()


def write(name: str, results: dict[str, Any]) -> None:
    """Keeps results where the table is made from, and shows them."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine()} | results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
