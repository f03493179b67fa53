"""Orbax checkpoints of a run: the training state and the configuration it belongs to."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from jaxmoral.config import Config, differences, parse, to_dict
from jaxmoral.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one run folder, numbered by update."""

    def __init__(self, run_folder: Path, kept: Sequence[int] = ()):
        """Opens the folder.

        Args:
          run_folder: of the run.
          kept: updates whose checkpoints are never deleted, besides the newest three.
        """
        folder = (run_folder / "checkpoints").resolve()
        self._folder = folder
        keep = [LatestN(3)] + ([CustomSteps(list(kept))] if kept else [])
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(keep),
                enable_async_checkpointing=False,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest checkpoint's update, or None."""
        return self._manager.latest_step()

    def save(self, update: int, state: Any, members: Mapping[str, Config]) -> None:
        """Saves a pytree of arrays; does nothing when that update is saved already.

        Args:
          update: its number.
          state: of one run, or of a population.
          members: the configurations it belongs to, by the members' names.
        """
        if self.latest() == update:
            return
        self._manager.save(
            update,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave({name: to_dict(c) for name, c in members.items()}),
            ),
        )

    def restore(self, like: Any, members: Mapping[str, Config], update: int | None = None) -> Any:
        """Reads the newest checkpoint, or that of one update.

        Args:
          like: a pytree of arrays shaped like the state that was saved, on the devices it goes to
            (not necessarily the kind of device that saved it).
          members: the configurations the checkpoint must have been made with.
          update: whose checkpoint; None for the newest.

        Raises:
          UserError: there is none, it belongs to another configuration, or it is damaged.
        """
        latest = self.latest()
        if latest is None:
            raise UserError(
                f"no checkpoint in {self._folder}; delete the run folder and train anew"
            )
        update = latest if update is None else update
        if update not in self._manager.all_steps():
            known = ", ".join(map(str, sorted(self._manager.all_steps())))
            raise UserError(
                f"no checkpoint of update {update} in {self._folder}; there are {known}"
            )
        try:
            saved = self._manager.restore(update, args=ocp.args.Composite(config=_JSON))
            changed = [
                key
                for name, config in members.items()
                for key in differences(config, parse(saved["config"].get(name, saved["config"])))
            ]
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(update, error) from error
        if changed:
            raise UserError(
                f"the checkpoint in {self._folder} belongs to another configuration; it differs in"
                f" {', '.join(dict.fromkeys(changed))}"
            )
        try:
            state = ocp.args.StandardRestore(like)
            return self._manager.restore(update, args=ocp.args.Composite(state=state))["state"]
        except Exception as error:
            raise self._damaged(update, error) from error

    def _damaged(self, update: int, error: Exception) -> UserError:
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return UserError(
            f"the checkpoint {self._folder / str(update)} cannot be read ({line}); if it is"
            " damaged, delete that folder to go back to the one before"
        )


_JSON = ocp.args.JsonRestore()
