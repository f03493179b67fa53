"""Training metrics as files: one JSON line an update, and the same as a table."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.learning.run_folder import METRICS, TABLE, run_folders
from jaxmoral.world.memory import OUTCOMES

ACTION_TYPES = tuple(f"{outcome}|{other}" for outcome in OUTCOMES for other in "CD")


def to_record(
    update: int, metrics: dict[str, Any], *, episodes: int, seconds: float, num_members: int = 1
) -> dict:
    """Plain numbers from an update's metrics.

    Args:
      update: how many updates were made, this one included.
      metrics: `[num_players]` each, "action_types" `[num_players, 3 (outcome), 2 or 3 (opponent's
        previous move)]`; of a population with a leading axis of members. A second player's are
        found under "opponent".
      episodes: how many episodes were played so far, by each member.
      seconds: the wall time of this update.
      num_members: with more than one, every number is a list of the members' numbers.
    """
    players: list[dict] = []
    lead = () if num_members == 1 else (slice(None),)
    for player in range(metrics["loss"].shape[-1]):
        own = {name: np.asarray(value)[(*lead, player)] for name, value in metrics.items()}
        types = named_action_types(own.pop("action_types"))
        players.append({name: value.tolist() for name, value in own.items()})
        players[-1]["action_types"] = types
    record = {"update": update, "episodes": episodes} | players[0] | {"seconds": seconds}
    return record if len(players) == 1 else record | {"opponent": players[1]}


def named_action_types(shares: np.ndarray) -> dict[str, Any]:
    """Names the shares of `[..., 3 (outcome), 2 or 3 (opponent's previous move)]`.

    A third column is of rounds without one before, "C|-".
    """
    found = {}
    for outcome, before in np.ndindex(shares.shape[-2:]):
        found[f"{OUTCOMES[outcome]}|{'CD-'[before]}"] = shares[..., outcome, before].tolist()
    return found


def of_member(record: dict, index: int) -> dict:
    """One member's record out of a population's."""
    found = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found[name] = of_member(value, index)
        else:
            found[name] = value[index] if isinstance(value, list) else value
    return found


def finite(metrics: dict[str, Any], num_members: int) -> np.ndarray:
    """Whether every player's loss, gradient and new parameters are numbers, `[num_members]`."""
    values = np.stack([np.asarray(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    return np.isfinite(values).reshape(3, num_members, -1).all((0, 2))


def last_line(record: dict) -> str:
    """A record of one run, or of one member, in a few words."""
    types = record["action_types"]
    cooperation = sum(share for kind, share in types.items() if kind.startswith("C|"))
    return (
        f"reward {record['reward_mean']:.2f}, C {cooperation:.1%}, legal"
        f" {1 - record['p_illegal']:.1%}, KL {record['kl']:.2f} in update {record['update']}"
    )


def postfix(metrics: dict[str, Any]) -> str:
    """An update in a few words, of several members the mean."""
    rewards, illegal, kl = (
        np.asarray(metrics[name])[..., 0] for name in ("reward_mean", "p_illegal", "kl")
    )
    return f"reward {rewards.mean():.2f}, legal {1 - illegal.mean():.1%}, KL {kl.mean():.2f}"


class MetricsLog:
    """Appends to `metrics.jsonl` and `metrics.csv` of a run folder.

    Lines that were appended before `sync` survive whatever happens to the machine; the table is
    made of them when the log is opened.
    """

    def __init__(self, run_folder: Path, start: int):
        """Opens the log for the updates after `start`, dropping lines of later ones.

        Raises:
          UserError: lines of earlier updates are missing, or nothing can be written.
        """
        self._path = run_folder / METRICS
        kept = [record for record in read(run_folder) if record["update"] <= start] if start else []
        if [record["update"] for record in kept] != list(range(1, start + 1)):
            raise UserError(
                f"{self._path} is damaged: it must have one line for each of the {start} updates"
                " of the checkpoint"
            )
        save(run_folder, kept)
        self._file = self._path.open("a", encoding="utf-8")
        self._table = _Table(run_folder / TABLE)

    def append(self, record: dict) -> None:
        """Writes one update's record; raises UserError if it cannot."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._table.append(_row(record))
        except OSError as error:
            raise self._unwritten(error) from error

    def sync(self) -> None:
        """Makes the lines as durable as the checkpoint that is about to follow them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._file.close()
            self._table.close()
        except OSError as error:
            if kind is None:  # otherwise what went wrong first is what matters
                raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path} ({error.strerror}); --resume goes on from the last"
            " checkpoint"
        )


def save(run_folder: Path, records: Sequence[dict]) -> None:
    """Writes a run's records, all of them or nothing."""
    with replacing(run_folder / METRICS) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
        file.flush()
        os.fsync(file.fileno())
    _write_rows(run_folder / TABLE, [_row(record) for record in records])


def share(folder: Path, names: Sequence[str]) -> None:
    """Gives each member of a population its part of the metrics."""
    history = read(folder)
    for index, own in enumerate(run_folders(folder, names).values()):
        save(own, [of_member(record, index) for record in history])


class _Table:
    """A CSV file that grows by rows, and is written anew when a column comes in."""

    def __init__(self, path: Path):
        self._path = path
        with path.open(encoding="utf-8", newline="") as file:
            self._columns = next(csv.reader(file), [])
        self._file = path.open("a", encoding="utf-8", newline="")

    def append(self, row: dict[str, Any]) -> None:
        if row.keys() - set(self._columns):
            self._file.close()
            with self._path.open(newline="", encoding="utf-8") as file:
                earlier = list(csv.DictReader(file))
            self._columns = _write_rows(self._path, [*earlier, row])
            self._file = self._path.open("a", newline="", encoding="utf-8")
        else:
            csv.DictWriter(self._file, self._columns).writerow(row)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Writes a table, and returns its columns: those of every row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        if columns:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return columns


def _row(record: dict) -> dict[str, Any]:
    """A record as a row of the table."""
    drawn = {} if "conditions" not in record else {"conditions": json.dumps(record["conditions"])}
    return dict(scalars(record)) | drawn


def scalars(record: dict, group: str = "") -> Iterator[tuple[str, float]]:
    """What trackers and tables show: every number by name, of a population the members' mean."""
    for name, value in record.items():
        tag = group + name.replace("|", "_after_")
        if isinstance(value, dict):
            yield from scalars(value, tag + "/")
        elif name != "conditions":
            yield tag, value if isinstance(value, int | float) else float(np.mean(value))


def read(run_folder: Path) -> list[dict]:
    """The records of a run; a last line that was cut off while it was written is left out.

    Raises:
      UserError: there is no `metrics.jsonl`, or a line of it is damaged.
    """
    path = run_folder / METRICS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error})") from None
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict) or "update" not in record:
            raise UserError(f"{path} is damaged: line {number} is no record of an update")
    return found
