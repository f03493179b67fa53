"""Training metrics as files: one JSON line an update, and TensorBoard events."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from jaxmoral.errors import UserError

ACTION_TYPES = ("C|C", "C|D", "D|C", "D|D", "illegal|C", "illegal|D")


def to_record(update: int, episodes: int, seconds: float, metrics: dict[str, Any]) -> dict:
    """Plain numbers from an update's metrics.

    Args:
      update: how many updates were made, this one included.
      episodes: how many episodes were played so far.
      seconds: the wall time of this update.
      metrics: scalars, and "action_types" `[3 (outcome), 2 (opponent's previous move)]`.
    """
    record: dict[str, Any] = {"update": update, "episodes": episodes}
    for name, value in metrics.items():
        record[name] = action_types(value) if name == "action_types" else float(value)
    return record | {"seconds": seconds}


def action_types(shares: np.ndarray) -> dict[str, float]:
    """Names the six shares of `[3 (outcome), 2 (opponent's previous move)]`."""
    return dict(zip(ACTION_TYPES, map(float, np.ravel(shares)), strict=True))


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard event files of a run folder."""

    def __init__(self, run_folder: Path, start: int):
        """Opens the log for the updates after `start`, dropping lines of later ones."""
        self._path = run_folder / "metrics.jsonl"
        kept = [record for record in read(run_folder) if record["update"] <= start] if start else []
        scratch = self._path.with_name(self._path.name + ".part")
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(scratch, self._path)
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(run_folder / "tensorboard"), purge_step=start + 1)

    def append(self, record: dict) -> None:
        """Writes one update's record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            leaves = value if isinstance(value, dict) else {"": value}
            for leaf, number in leaves.items():
                tag = f"{name}/{leaf.replace('|', '_after_')}" if leaf else name
                self._events.add_scalar(tag, number, record["update"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()


def read(run_folder: Path) -> list[dict]:
    """The records of a run; a last line that was cut off while it was written is left out.

    Raises:
      UserError: there is no `metrics.jsonl`, or a line of it is damaged.
    """
    path = run_folder / "metrics.jsonl"
    try:
        lines = path.read_text().split("\n")[:-1]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error})") from None
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None


def is_finite(record: dict) -> bool:
    """Whether loss, gradient and new parameters are numbers."""
    return all(math.isfinite(record[name]) for name in ("loss", "grad_norm", "param_norm"))
