"""Kills trainings at random moments, resumes them, and compares them with one that was left alone.

    python scripts/crash_test.py FOLDER --kills 50
    python scripts/crash_test.py FOLDER --kills 10 --model TINY    (see scripts/tiny_model.py)

Parameters, optimiser state and metrics must be equal to the last bit, and no start may have lost
more than a checkpoint interval and what was being written. Every third kill waits until a
checkpoint is half written.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
COMMAND = importlib.import_module("jaxmoral.train")
INTERVAL = 3  # updates between two checkpoints


def start(flags: list[str], folder: Path, resume: bool) -> int:
    """Forks a training: the parent has imported everything, and no device has been asked for."""
    child = os.fork()
    if child:
        return child
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["train", "--output-dir", str(folder), *(["--resume"] if resume else flags)]
    code = 1
    try:
        COMMAND.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def newest(folder: Path) -> int:
    """The newest complete checkpoint."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def is_writing(folder: Path) -> bool:
    return any("tmp" in path.name for path in (folder / "checkpoints").glob("*"))


def wait_and_kill(child: int, folder: Path, delay: float, in_writing: bool) -> str:
    """Kills a training some time after its first new metrics line; says what happened."""
    before = len(lines(folder))
    began = time.monotonic()
    moved: float | None = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "finished" if status == 0 else f"failed with {status}"
        if moved is None and len(lines(folder)) != before:
            moved = time.monotonic()
        due = moved is not None and time.monotonic() - moved > delay
        if (due and (not in_writing or is_writing(folder))) or time.monotonic() - began > 120:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed while a checkpoint was written" if is_writing(folder) else "killed"
        time.sleep(0.0005)


def lines(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def leaves(folder: Path) -> list[np.ndarray]:
    """Everything in the newest checkpoint, read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    path = folder.absolute() / "checkpoints" / str(newest(folder)) / "state"
    return [np.asarray(leaf) for leaf in jax.tree.leaves(ocp.StandardCheckpointer().restore(path))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="tabular")
    parser.add_argument("--updates", help="900, or 60 of a model; enough for all kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    tabular = arguments.model == "tabular"
    flags = ["--model.source", arguments.model, "--checkpoint_every", str(INTERVAL)]
    flags += ["--updates", arguments.updates or ("900" if tabular else "60")]
    flags += ["--env.episodes", "512"]
    flags += ["--ppo.learning_rate", "0.003", *([] if tabular else ["--prompt.labels", "[X, Y]"])]
    arguments.folder.mkdir(parents=True)
    whole, cut = arguments.folder / "whole", arguments.folder / "cut"
    assert os.waitpid(start(flags, whole, False), 0)[1] == 0, "the run left alone failed"

    happened: dict[str, int] = {}
    kills, lost = 0, 0
    resume = False
    while True:
        child = start(flags, cut, resume)
        if kills == arguments.kills:
            assert os.waitpid(child, 0)[1] == 0, "the last start failed"
            break
        told = wait_and_kill(child, cut, draw.uniform(0, 0.5), kills % 3 == 2)
        happened[told] = happened.get(told, 0) + 1
        assert "fail" not in told, told
        if told == "finished":
            break
        kills += 1
        resume = (cut / "config.yaml").is_file()
        if newest(cut) >= 0:
            done = max([json.loads(line)["update"] for line in lines(cut)[:-1]] or [0])
            lost = max(lost, done - newest(cut))
    strip = lambda line: {k: v for k, v in json.loads(line).items() if k != "seconds"}
    same = [strip(line) for line in lines(cut)] == [strip(line) for line in lines(whole)]
    for ours, theirs in zip(leaves(cut), leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    print(f"{kills} kills: {happened}; at most {lost} updates were made again")
    assert same, "the metrics differ"
    print("parameters, optimiser and metrics are equal to the last bit")


if __name__ == "__main__":
    main()
