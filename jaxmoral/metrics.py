"""Training metrics as files: one JSON line an update, and TensorBoard events."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from jaxmoral.errors import UserError

ACTION_TYPES = ("C|C", "C|D", "D|C", "D|D", "illegal|C", "illegal|D")


def to_record(update: int, episodes: int, seconds: float, metrics: dict[str, Any]) -> dict:
    """Plain numbers from an update's metrics.

    Args:
      update: how many updates were made, this one included.
      episodes: how many episodes were played so far.
      seconds: the wall time of this update.
      metrics: `[num_players]` each, "action_types" `[num_players, 3 (outcome), 2 (opponent's
        previous move)]`. A second player's are found under "opponent".
    """
    players = [
        {
            name: action_types(value[player]) if name == "action_types" else float(value[player])
            for name, value in metrics.items()
        }
        for player in range(len(metrics["loss"]))
    ]
    record = {"update": update, "episodes": episodes} | players[0] | {"seconds": seconds}
    return record if len(players) == 1 else record | {"opponent": players[1]}


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
        # One event for all scalars: an event each would take longer than a small update.
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in _scalars(record)]
        self._events.file_writer.add_summary(Summary(value=values), record["update"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()


def _scalars(record: dict, group: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        tag = group + name.replace("|", "_after_")
        if isinstance(value, dict):
            yield from _scalars(value, tag + "/")
        else:
            yield tag, value


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
    """Whether every player's loss, gradient and new parameters are numbers."""
    players = [record] + ([record["opponent"]] if "opponent" in record else [])
    names = ("loss", "grad_norm", "param_norm")
    return all(math.isfinite(player[name]) for player in players for name in names)
