"""Orbax checkpoints of a run: the training state and the configuration it belongs to.

They are written in the background, each all at once or not at all, by all processes together. A
checksum of the state goes with it, so that damage is found when it is read.
"""

import importlib.metadata
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, CustomSteps, LatestN

from jaxmoral.cluster import on_first
from jaxmoral.config import Config, differences, parse, to_dict
from jaxmoral.errors import UserError

logging.getLogger("absl").setLevel(logging.CRITICAL)

_JSON = ocp.args.JsonRestore()
_SPARE = 2**20  # bytes of small files that go with a state
_VERSION = importlib.metadata.version("jaxmoral")


@jax.jit
def checksum(state: Any) -> jax.Array:
    """A number that changes when any bit of the arrays does, however they are split over devices.

    Bits are weighted by odd numbers of their place and added up modulo 2^32.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(state):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").ravel()
        place = jax.lax.iota(jnp.uint32, bits.size)
        total = 3 * total + jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
    return total


class Checkpoints:
    """The checkpoints of one run folder, numbered by update."""

    def __init__(self, run_folder: Path, kept: Sequence[int] = (), writable: bool = False):
        """Opens the folder.

        Args:
          run_folder: of the run.
          kept: updates whose checkpoints are never deleted, besides the newest three and the best.
          writable: whether checkpoints will be saved; one process, or one cluster, at a time.
        """
        folder = (run_folder / "checkpoints").resolve()
        self._folder = folder
        best = BestN(get_metric_fn=_reward, n=1, keep_checkpoints_without_metrics=False)
        keep = [LatestN(3), best, *([CustomSteps(list(kept))] if kept else [])]
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(keep),
                best_fn=_reward,
                read_only=not writable,
                create=writable,
                cleanup_tmp_directories=writable,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:  # otherwise what went wrong first is what matters
                raise self._unwritten(_first_line(error)) from error

    def latest(self) -> int | None:
        """The newest checkpoint's update, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The update of the checkpoint with the highest reward; None if there is none."""
        return self._manager.best_step()

    def save(
        self, update: int, state: Any, members: Mapping[str, Config], reward: float | None = None
    ) -> None:
        """Starts saving a pytree of arrays; does nothing when that update is saved already.

        Args:
          update: its number.
          state: of one run, or of a population.
          members: the configurations it belongs to, by the members' names.
          reward: by which the best is found, if it may be.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        if self.latest() == update:
            return
        on_first(lambda: self._check_room(state))
        try:
            self._manager.save(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave({name: to_dict(c) for name, c in members.items()}),
                    about=ocp.args.JsonSave(
                        {"version": _VERSION, "checksum": int(checksum(state))}
                    ),
                ),
                metrics=None if reward is None else {"reward": reward},
            )
        except Exception as error:
            raise self._unwritten(_first_line(error)) from error

    def restore(
        self,
        like: Any,
        members: Mapping[str, Config],
        update: int | None = None,
        set_aside: bool = False,
        say: Callable[[str], None] = print,
    ) -> Any:
        """Reads the newest checkpoint that is not damaged, or that of one update.

        Args:
          like: a pytree of arrays shaped like the state that was saved, on the devices it goes to
            (not necessarily those that saved it).
          members: the configurations the checkpoint must have been made with.
          update: whose checkpoint; None for the newest.
          set_aside: move newer, damaged checkpoints out of the way of new ones.
          say: where lines for people go.

        Raises:
          UserError: there is none, it belongs to another configuration, or it is damaged.
        """
        known = sorted(self._manager.all_steps())
        if not known:
            raise UserError(
                f"no checkpoint in {self._folder}; delete the run folder and train anew"
            )
        if update is not None:
            if update not in known:
                shown = ", ".join(map(str, known))
                raise UserError(
                    f"no checkpoint of update {update} in {self._folder}; there are {shown}"
                )
            return self._read(update, like, members, say)
        for index in reversed(range(len(known))):
            try:
                state = self._read(known[index], like, members, say)
            except _Damaged as error:
                if index == 0:
                    raise UserError(f"{error}; there is no other one") from error
                say(f"{error}; going back to update {known[index - 1]}")
            else:
                if set_aside and known[index + 1 :]:
                    self._set_aside(known[index + 1 :])
                return state
        raise AssertionError("unreachable")

    def _read(
        self,
        update: int,
        like: Any,
        members: Mapping[str, Config],
        say: Callable[[str], None],
    ) -> Any:
        try:
            items = ocp.args.Composite(config=_JSON, about=_JSON)
            found = self._manager.restore(update, args=items)
            saved, about = found["config"], found["about"]
            configs = [(config, saved[name]) for name, config in members.items()]
            changed = [
                key
                for config, other in configs
                for key in differences(config, parse(other))
                if not key.startswith("mesh.")  # other devices may go on
            ]
        except Exception as error:
            raise _Damaged(self._folder / str(update), error) from error
        if about["version"] != _VERSION:
            say(f"the checkpoint was made by version {about['version']}, this is {_VERSION}")
        if changed:
            raise UserError(
                f"the checkpoint in {self._folder} belongs to another configuration; it differs in"
                f" {', '.join(dict.fromkeys(changed))}"
            )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            state = self._manager.restore(update, args=items)["state"]
            if int(checksum(state)) != about["checksum"]:
                raise ValueError("its numbers do not have the checksum they were saved with")
        except Exception as error:
            raise _Damaged(self._folder / str(update), error) from error
        return state

    def _check_room(self, state: Any) -> None:
        """Refuses before the storage library begins: its threads report a full disk at length."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._unwritten(
                f"No space left on device: {free / 2**20:.1f} of {needed / 2**20:.1f} MiB"
            )

    def _set_aside(self, updates: Sequence[int]) -> None:
        damaged = self._folder.parent / "damaged"

        def move() -> None:
            damaged.mkdir(exist_ok=True)
            for update in updates:
                taken = len(list(damaged.glob(f"{update}*")))
                name = f"{update}-{taken}" if taken else str(update)
                (self._folder / str(update)).rename(damaged / name)

        on_first(move)
        self._manager.reload()

    def _unwritten(self, reason: str) -> UserError:
        return UserError(
            f"cannot write a checkpoint to {self._folder} ({reason}); what was complete before is"
            " kept: --resume goes on from there"
        )


class _Damaged(UserError):
    """A checkpoint that cannot be read."""

    def __init__(self, path: Path, error: Exception):
        super().__init__(f"the checkpoint {path} is damaged ({_first_line(error)})")


def _reward(metrics: Any) -> float:
    return metrics["reward"]


def _first_line(error: Exception) -> str:
    # What the system said is deep inside a storage library's message.
    if known := re.search("No space left on device|Disk quota exceeded", str(error)):
        return known[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
