"""Orbax checkpoints of a run: the training state and the configuration it belongs to.

They are written in the background, each all at once or not at all, by all processes together.
Checksums go with the state and with what stands beside it, so that damage is found when it is read,
and nothing else is taken for damage.
"""

import dataclasses
import importlib.metadata
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from jaxmoral.config import ALONE, Config, differences, parse, to_dict
from jaxmoral.config.trees import OF_THE_MACHINE
from jaxmoral.devices.cluster import on_first
from jaxmoral.errors import UserError
from jaxmoral.learning.damage import Damaged, checksum, first_line, judged, seal_of
from jaxmoral.learning.run_folder import CHECKPOINTS, DAMAGED
from jaxmoral.learning.state import Players, TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)

_JSON = ocp.args.JsonRestore()
_SPARE = 2**20  # bytes of small files that go with a state
_VERSION = importlib.metadata.version("jaxmoral")

Rewards = list[float | None]  # of the members; None is not a number


class _Stored(NamedTuple):
    """A `TrainState` as it is written; the names of its arrays are those of the format."""

    update: Any
    trainable: Any
    opt_state: Any
    kl_coef: Any
    moments: Any


def _stored(state: TrainState) -> _Stored:
    return _Stored(state.update, **state.players._asdict())


def _read_back(stored: _Stored) -> TrainState:
    fields = stored._asdict()
    return TrainState(fields.pop("update"), Players(**fields))


def changed_keys(config: Config, saved: Config) -> list[str]:
    """The keys in which a checkpoint's configuration differs, but for what may change.

    These may: the devices (`mesh.*`), how many conditions are kept packed (`mixture.kept`), the
    number of updates (see `resume`) and the trackers.
    """
    free = (*OF_THE_MACHINE, "updates")
    return [key for key in differences(config, saved) if not key.startswith(free)]


class Checkpoints:
    """The checkpoints of one run folder, numbered by update."""

    def __init__(self, run_folder: Path, kept: Sequence[int] = (), *, writable: bool = False):
        """Opens the folder.

        Args:
          run_folder: of the run.
          kept: updates whose checkpoints are never deleted, besides the newest three and each
            member's best.
          writable: whether checkpoints will be saved; one process, or one cluster, at a time.

        Raises:
          UserError: a file in it cannot be read.
        """
        folder = (run_folder / CHECKPOINTS).resolve()
        self._folder = folder
        self._rewards: dict[int, Rewards] = {}
        keep = [LatestN(3), _BestOfEach(self._rewards)]
        keep += [CustomSteps(list(kept))] if kept else []
        try:
            self._manager = ocp.CheckpointManager(
                folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=AnyPreservationPolicy(keep),
                    read_only=not writable,
                    create=writable,
                    cleanup_tmp_directories=writable,
                ),
            )
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # Earlier versions kept rewards in a file that Orbax reads at once; nothing needs it.
            raise UserError(
                f"a file metrics/metrics in {folder} is damaged ({first_line(error)}); delete it"
            ) from error
        if writable:
            self._read_rewards()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:  # otherwise what went wrong first is what matters
                raise self._unwritten(first_line(error)) from error

    def latest(self) -> int | None:
        """The newest checkpoint's update, or None."""
        return self._manager.latest_step()

    def best(self, member: int = 0) -> int:
        """The update of the checkpoint with a member's highest reward, the newest of equals.

        Raises:
          UserError: no checkpoint has one.
        """
        self._read_rewards()
        if (update := _best(self._rewards, self._manager.all_steps(), member)) is None:
            shown = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise UserError(
                f"no checkpoint in {self._folder} says how good its policy is (those of earlier"
                f" versions do not); name an update instead of best; there are {shown}"
            )
        return update

    def newest_configs(self) -> dict[str, Config] | None:
        """The members' configurations in the newest readable checkpoint; None if there is none.

        Raises:
          UserError: no checkpoint can be read, or this version cannot read its configuration.
        """
        damage = None
        for update in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._configs(update, *self._beside(update))
            except Damaged as error:
                damage = damage or error
        if damage is not None:
            raise UserError(f"{damage}; there is no other one")
        return None

    def save(
        self,
        update: int,
        state: TrainState,
        *,
        members: Mapping[str, Config],
        rewards: Iterable[float],
    ) -> None:
        """Starts saving a state; does nothing when that update is saved already.

        Args:
          update: its number.
          state: of one run, or of a population.
          members: the configurations it belongs to, by the members' names.
          rewards: of each member's policy in the state; see `best`.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        if self.latest() == update:
            return
        on_first(lambda: self._check_room(state))
        config = {name: to_dict(c) for name, c in members.items()}
        labels: Rewards = [float(x) if math.isfinite(x) else None for x in rewards]
        about = {"version": _VERSION, "checksum": int(checksum(state)), "rewards": labels}
        self._rewards[update] = labels
        try:
            self._manager.save(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_stored(state)),
                    config=ocp.args.JsonSave(config),
                    about=ocp.args.JsonSave(about | {"seal": seal_of(config, about)}),
                ),
            )
        except Exception as error:
            raise self._unwritten(first_line(error)) from error

    def wait(self) -> None:
        """Returns when the last checkpoint is complete; raises UserError if it cannot be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(first_line(error)) from error

    def restore(
        self,
        like: TrainState,
        members: Mapping[str, Config],
        *,
        update: int | None = None,
        set_aside: bool = False,
        say: Callable[[str], None] = print,
    ) -> TrainState:
        """Reads the newest checkpoint that is not damaged, or that of one update.

        Args:
          like: of arrays shaped like those of the state that was saved, on the devices it goes to
            (not necessarily those that saved it).
          members: the configurations the checkpoint must have been made with.
          update: whose checkpoint; None for the newest.
          set_aside: move newer, damaged checkpoints out of the way of new ones.
          say: where lines for people go.

        Raises:
          UserError: there is none, it belongs to another configuration, or it is damaged or cannot
            be read.
        """
        known = sorted(self._manager.all_steps())
        if not known:
            raise UserError(
                f"no checkpoint in {self._folder}: the run was stopped before its first, or has not"
                " come to it; python -m jaxmoral.train --resume goes on with it"
            )
        if update is not None:
            if update not in known:
                shown = ", ".join(map(str, known))
                raise UserError(
                    f"no checkpoint of update {update} in {self._folder}; there are {shown}"
                )
            return self._read(update, like, members=members, say=say)
        for index in reversed(range(len(known))):
            try:
                state = self._read(known[index], like, members=members, say=say)
            except Damaged as error:
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
        like: TrainState,
        *,
        members: Mapping[str, Config],
        say: Callable[[str], None],
    ) -> TrainState:
        saved, about = self._beside(update)
        if about["version"] != _VERSION:
            say(f"the checkpoint was made by version {about['version']}, this is {_VERSION}")
        configs = self._configs(update, saved, about)
        if list(configs) != list(members):
            raise UserError(
                f"the checkpoint in {self._folder} belongs to {shown_members(configs)}, not to"
                f" {shown_members(members)}"
            )
        pairs = zip(members.values(), configs.values(), strict=True)
        changed = [key for pair in pairs for key in changed_keys(*pair)]
        if changed:
            raise UserError(
                f"the checkpoint in {self._folder} belongs to another configuration; it differs in"
                f" {', '.join(dict.fromkeys(changed))}"
            )
        path = self._folder / str(update)
        with judged(path):
            described = ocp.StandardCheckpointHandler().metadata(path / "state")
            odd = set(_shapes(described.tree).items()) ^ set(_shapes(_stored(like)).items())
            if odd:
                raise UserError(
                    f"the checkpoint {path} holds other arrays than this version trains"
                    f" ({min(name for name, _ in odd)}); it was made by version {about['version']},"
                    f" this is {_VERSION}"
                )
            items = ocp.args.Composite(state=ocp.args.StandardRestore(_stored(like)))
            stored = self._manager.restore(update, args=items)["state"]
            state = _read_back(stored)
            if int(checksum(state)) != about["checksum"]:
                raise Damaged(path, "its numbers do not have the checksum they were saved with")
        return state

    def _beside(self, update: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stands beside a state: the members' configurations, and about the checkpoint."""
        path = self._folder / str(update)
        with judged(path):
            items = ocp.args.Composite(config=_JSON, about=_JSON)
            found = self._manager.restore(update, args=items)
            saved, about = found["config"], found["about"]
            if not (isinstance(saved, dict) and isinstance(about, dict) and "version" in about):
                raise Damaged(path, "config or about is not what was saved")
            # Checkpoints of earlier versions have no seal.
            if about.get("seal") not in (None, seal_of(saved, about)) or "checksum" not in about:
                raise Damaged(path, "config or about is not what was saved")
        return saved, about

    def _configs(
        self, update: int, saved: Mapping[str, Any], about: Mapping[str, Any]
    ) -> dict[str, Config]:
        try:
            return {name: parse(tree) for name, tree in saved.items()}
        except UserError as error:
            raise UserError(
                f"the checkpoint {self._folder / str(update)} has a configuration that this version"
                f" cannot read ({error}); it was made by version {about['version']}, this is"
                f" {_VERSION}"
            ) from None

    def _read_rewards(self) -> None:
        for update in self._manager.all_steps():
            if update not in self._rewards:
                try:
                    rewards = self._beside(update)[1].get("rewards")
                except Damaged:  # then it is no one's best
                    continue
                if rewards is not None:  # those of earlier versions are of the policy before
                    self._rewards[update] = rewards

    def _check_room(self, state: Any) -> None:
        """Refuses before the storage library begins: its threads report a full disk at length."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._unwritten(
                f"No space left on device: {free / 2**20:.1f} of {needed / 2**20:.1f} MiB"
            )

    def _set_aside(self, updates: Sequence[int]) -> None:
        damaged = self._folder.parent / DAMAGED

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


@dataclasses.dataclass
class _BestOfEach:
    """The preservation policy that keeps every member's best checkpoint."""

    rewards: Mapping[int, Rewards]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        updates = [checkpoint.step for checkpoint in checkpoints]
        num_members = max(map(len, self.rewards.values()), default=0)
        kept = {_best(self.rewards, updates, member) for member in range(num_members)}
        return [update in kept for update in updates]


def _best(rewards: Mapping[int, Rewards], updates: Iterable[int], member: int) -> int | None:
    """Which of the updates has a member's highest reward, the newest of equals."""
    known = [(rewards[u][member], u) for u in updates if u in rewards]
    return max(((r, u) for r, u in known if r is not None), default=(0.0, None))[1]


def _shapes(tree: Any) -> dict[str, tuple]:
    """Names of a pytree's arrays to their shapes and types."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def shown_members(names: Iterable[str]) -> str:
    """The members in a message, three of them by name."""
    listed = list(names)
    if listed == [ALONE]:
        return "a single agent"
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return f"the members {'; '.join(listed[:3])}{more}"
