"""Whether a GPU or a TPU computes what a CPU does, how fast an update is on it, and what fits.

    python scripts/accelerator_check.py [--parts parity speed rollouts learning] [--minutes 10]

Needs no hub: models have random weights, except Gemma 3 270M where its package is installed.
Each measurement has a process of its own, so that its peak of memory is its own and one that does
not fit ends nothing else. Prints docs/accelerator.md and writes it with docs/accelerator.json.
Without an accelerator that page says what is predicted; `--tiny` tries everything on tiny shapes.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerator import page
from accelerator.cases import CASES

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("parity", "speed", "rollouts", "learning")
H100_BYTES = 0.95 * 80e9  # of one that XLA is allowed to take
LEAST = 10  # seconds for which nothing is begun


def device_facts(tiny: bool) -> dict[str, Any]:
    """What the devices are, and their matrix-product rates."""
    import jax

    first, rates = jax.local_devices()[0], {}
    if not tiny:
        from accelerator.speed import peak_rate

        rates = {name: peak_rate(name) for name in ("float32", "bfloat16")}
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": len(jax.devices()),
        "bytes": (first.memory_stats() or {}).get("bytes_limit"),
        "rates": rates,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }


def do(job: str, tiny: bool) -> Any:
    """One measurement, in this process; what it imports needs JAX."""
    part, _, name = job.partition(":")
    if part == "device":
        return device_facts(tiny)
    if part == "parity":
        from accelerator import parity

        return parity.measure(tiny)
    if part == "rollouts":
        from update import rollout_rate

        return {"rounds_per_second": rollout_rate(10_000 if tiny else 1_000_000)}
    if part == "learning":
        from accelerator import learning

        return learning.measure(tiny)
    from accelerator import speed

    if part == "paper":
        return {name: speed.on_paper(name, int(H100_BYTES), tiny) for name in speed.CASES}
    return speed.measure(name, tiny)


def in_process(job: str, seconds: float, *, tiny: bool, devices: str) -> Any:
    """What a process of its own says of a job, or why it says nothing."""
    if seconds < LEAST:
        return {"failed": "no time was left"}
    print(f"{job} ...", file=sys.stderr, flush=True)
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | os.environ
    if devices == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, __file__, "--job", job, *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished in the {seconds:.0f} s that were left"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"failed": why(done.returncode, done.stderr)}


def why(code: int, said: str) -> str:
    """In one line why a process ended."""
    if "RESOURCE_EXHAUSTED" in said or "Out of memory" in said:
        return "does not fit in the device's memory"
    if code < 0:
        return f"ended by signal {-code} (9: the host's memory was too small)"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"ended with exit code {code}"


def check(parts: list[str], job: Callable[[str], Any], cases: list[str], tiny: bool) -> Any:
    """All that was asked for; on a CPU of the speed what is predicted, unless it may be tiny."""
    device = job("device")
    results: dict[str, Any] = {"device": device}
    accelerated = device.get("platform", "cpu") != "cpu"
    if "failed" in device:
        return results
    if not accelerated and not tiny:
        results["paper"] = job("paper")
        parts = [part for part in parts if part == "parity"]
    for part in parts:
        named = part == "speed"
        results[part] = {name: job(f"{part}:{name}") for name in cases} if named else job(part)
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--devices", choices=["all", "cpu"], default="all")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; nothing is written")
    parser.add_argument("--minutes", type=float, default=10.0, help="the most for everything")
    parser.add_argument("--output", type=Path, help="a folder instead of docs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.job:
        print(json.dumps(do(asked.job, asked.tiny)))
        return
    end = time.monotonic() + 60 * asked.minutes
    run = functools.partial(in_process, tiny=asked.tiny, devices=asked.devices)
    job = lambda name: run(name, end - time.monotonic())
    results = check(asked.parts, job, list(CASES), asked.tiny)
    text = page.page(results)
    folder = asked.output or (None if asked.tiny else ROOT / "docs")
    if folder is not None and "failed" not in results["device"]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "accelerator.json").write_text(json.dumps(results, indent=2) + "\n")
        (folder / "accelerator.md").write_text(text)
    print(text, end="")
    if failed := page.failures(results):
        sys.exit("accelerator_check: " + "; ".join(failed))


if __name__ == "__main__":
    main()
