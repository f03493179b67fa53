"""The training loop around the jitted update: progress, checkpoints, interruption, populations."""

import dataclasses
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import yaml
from tqdm import tqdm

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.devices.cluster import is_first, largest, on_first
from jaxmoral.errors import UserError
from jaxmoral.learning import metrics, ppo
from jaxmoral.learning.agent import Agent, make_agent, make_presentation, settle
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.experiment import Step, check_population, compile_update, resolve
from jaxmoral.learning.resume import go_on
from jaxmoral.learning.score import make_score
from jaxmoral.learning.summary import summary_lines

POPULATION = "members.yaml"  # lists a population's members, whose folders are beside it


@dataclasses.dataclass(frozen=True)
class TrainedAgent:
    """What a run, or a member of a population, ends with.

    Attributes:
      config: resolved.
      agent: the policy and its frozen arrays.
      state: after the last update.
      history: one record an update made by this call, as in `metrics.jsonl`.
      interrupted: the signal that ended the run early, or None.

    >>> config = jaxmoral.parse({"model": {"source": "tabular"}, "updates": 2})
    >>> jaxmoral.train_agent(config, say=lambda line: None).trainable["logits"].shape
    (16, 3)
    """

    config: Config
    agent: Agent
    state: ppo.TrainState
    history: list[dict]
    interrupted: int | None = None

    @property
    def trainable(self) -> Any:
        """The agent's trained parameters; of two learners the first one's."""
        return first_player(self.state)


def first_player(state: ppo.TrainState) -> Any:
    """The first player's parameters."""
    return jax.tree.map(lambda leaf: leaf[0], state.trainable)


def member_state(state: ppo.TrainState, index: int) -> ppo.TrainState:
    """One member's part of a population's state."""
    return ppo.TrainState(state.update, *jax.tree.map(lambda leaf: leaf[index], state[1:]))


def train_agent(
    config: Config,
    output_dir: Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    *,
    extend: bool = False,
) -> TrainedAgent:
    """Trains an agent.

    Args:
      config: the experiment.
      output_dir: the run folder; None keeps everything in memory.
      resume: continue from the newest checkpoint of the run folder, for more updates than before if
        the configuration says so.
      say: where lines for people go.
      extend: continue for more updates even if a schedule depends on their number.

    Raises:
      UserError: the configuration cannot be used, the folder holds a run already (or, when
        resuming, none of this configuration, or none that can become so long), or the loss stopped
        being a number.
    """
    return train_population({"": config}, output_dir, resume, say, extend=extend)[""]


def train_population(
    members: Mapping[str, Config],
    output_dir: Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    *,
    extend: bool = False,
) -> dict[str, TrainedAgent]:
    """Trains several agents at once on one frozen base, each as if it were alone.

    Args:
      members: the experiments by name; see `configs.load_members`.
      output_dir: the population's folder, a run folder per member in it.
      resume, extend: as for `train_agent`.
      say: where lines for people go.

    Raises:
      UserError: as for `train_agent`, or the members cannot share one compiled step.
    """
    folder = None if output_dir is None else Path(output_dir)
    if folder:
        on_first(lambda: check_run_folder(folder, resume))
    if not is_first():
        say = lambda line: None
    resolved = {name: resolve(config) for name, config in members.items()}
    if len(resolved) == 1 and "" not in resolved:  # a population of one is a run
        (name,) = resolved
        return {name: train_agent(members[name], output_dir, resume, say, extend=extend)}
    check_population(list(resolved.values()))
    begun = go_on(folder, members, extend, say) if folder and resume else None
    resolved = begun or resolved
    started = time.perf_counter()
    start = next(iter(resolved.values()))
    if begun:  # the checkpoint holds the adapter; the folder it came from may be gone
        start = dataclasses.replace(start, lora=dataclasses.replace(start.lora, adapter=None))
    first = make_agent(start, len(resolved), say)
    agents = {
        name: first._replace(presentation=make_presentation(config, first.model))
        for name, config in resolved.items()
    }
    settled = {name: settle(config, agents[name]) for name, config in resolved.items()}
    say("\n".join(first.summary))
    if len(settled) > 1:
        some = [*list(settled)[:3], *(["..."] if len(settled) > 3 else [])]
        say(f"members    {len(settled)}: {'; '.join(some)}")
    say("\n".join(summary_lines(list(settled.values()))))
    say(f"loaded in {time.perf_counter() - started:.1f} s; compiling ...")
    started = time.perf_counter()
    state, step = compile_update([(settled[name], agents[name]) for name in settled])
    say(f"compiled in {time.perf_counter() - started:.1f} s")

    if folder is None:
        state, history, interrupted = _loop(settled, state, step)
    else:
        pairs = [(settled[name], agents[name]) for name in settled]
        with locked(folder, resume):
            if not begun:
                on_first(lambda: _write_configs(settled, folder))
            score = make_score(pairs)
            state, history, interrupted = _loop_in(folder, settled, state, step, score, say)
            if interrupted is None and len(settled) > 1:
                on_first(lambda: _share_metrics(settled, folder))
    alone = len(settled) == 1
    return {
        name: TrainedAgent(
            config,
            agents[name],
            state if alone else member_state(state, index),
            history if alone else [metrics.of_member(record, index) for record in history],
            interrupted,
        )
        for index, (name, config) in enumerate(settled.items())
    }


@contextmanager
def locked(folder: Path, resume: bool) -> Iterator[None]:
    """Makes the folder this program's own while it runs; the lock ends with the process.

    Raises:
      UserError: another process is writing to it, or wrote a run since it was checked.
    """
    held: list[TextIO] = []

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
        held.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; stop it first") from None
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}); start one training in it only")
        check_run_folder(folder, resume)

    try:
        on_first(take)
        yield
    finally:
        for file in held:
            file.close()


def _open_log(folder: Path, start: int) -> AbstractContextManager[metrics.MetricsLog | None]:
    """The first process's metrics log; the others have none."""
    log: list[metrics.MetricsLog] = []
    on_first(lambda: log.append(metrics.MetricsLog(folder, start)))
    return log[0] if log else nullcontext()


def switches(members: Mapping[str, Config]) -> list[int]:
    """The updates at which a reward is switched, whose checkpoints are kept."""
    found = {config.reward.switch_at for config in members.values()}
    return sorted(update for update in found if update is not None)


def _write_configs(members: Mapping[str, Config], folder: Path) -> None:
    for name, config in members.items():  # a run alone has no name
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        scratch = own / "config.yaml.part"
        configs.save(config, scratch)
        os.replace(scratch, own / "config.yaml")
    if len(members) > 1:
        scratch = folder / f"{POPULATION}.part"
        scratch.write_text(yaml.safe_dump(list(members), sort_keys=False))
        os.replace(scratch, folder / POPULATION)


def _share_metrics(members: Mapping[str, Config], folder: Path) -> None:
    """Gives each member of a population its part of the metrics."""
    history = metrics.read(folder)
    for index, name in enumerate(members):
        metrics.save(folder / name, [metrics.of_member(record, index) for record in history])


def population_of(folder: Path) -> tuple[Path, list[str], int] | None:
    """The population a run folder belongs to, its members' names, and which of them it is."""
    listed = folder.absolute().parent / POPULATION
    if (folder / "checkpoints").exists() or not listed.is_file():
        return None
    names = member_names(listed.parent)
    if folder.absolute().name not in names:
        raise UserError(f"{folder} is no member of the population in {listed.parent}")
    return listed.parent, names, names.index(folder.absolute().name)


def member_names(folder: Path) -> list[str]:
    """The names in a population's folder; raises UserError if they cannot be read."""
    try:
        names = yaml.safe_load((folder / POPULATION).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {folder / POPULATION} ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / POPULATION} is damaged: it must list names")
    return names


def _loop_in(
    folder: Path,
    members: Mapping[str, Config],
    state: ppo.TrainState,
    step: Step,
    score: Callable[[ppo.TrainState], np.ndarray],
    say: Callable[[str], None],
) -> tuple[ppo.TrainState, list[dict], int | None]:
    """`_loop` from the folder's newest checkpoint, or from the state if there is none."""
    with Checkpoints(folder, switches(members), writable=True) as checkpoints:
        if checkpoints.latest() is None:
            checkpoints.save(0, state, members, score(state))
        else:
            state = checkpoints.restore(state, members, set_aside=True, say=say)
        with _open_log(folder, int(state.update)) as log:
            on_first(lambda: _write_configs(members, folder))  # the run may be longer now
            return _loop(members, state, step, _Keep(checkpoints, score, log))


@dataclasses.dataclass(frozen=True)
class _Keep:
    """Where what happens is kept.

    Attributes:
      checkpoints: of the run.
      score: of `make_score`.
      log: in the first process.
    """

    checkpoints: Checkpoints
    score: Callable[[ppo.TrainState], np.ndarray]
    log: metrics.MetricsLog | None


def _loop(
    members: Mapping[str, Config], state: ppo.TrainState, step: Step, keep: _Keep | None = None
) -> tuple[ppo.TrainState, list[dict], int | None]:
    """Updates until the end, or until a signal comes: the state, the records, the signal."""
    config = next(iter(members.values()))
    history: list[dict] = []
    start = int(state.update)
    title = config.reward.title if len(members) == 1 else f"{len(members)} members"
    silent = not is_first()
    bar = tqdm(total=config.updates, initial=start, desc=title, unit="update", disable=silent)
    lost: dict[str, int] = {}
    stopped = 0
    with bar, _signals() as received:
        for update in range(start + 1, config.updates + 1):
            began = time.perf_counter()
            state, values = step(state, update - 1)
            values = jax.device_get(values)
            seconds = time.perf_counter() - began
            record = metrics.to_record(
                update, update * config.env.episodes, seconds, values, len(members)
            )
            bad = np.flatnonzero(~metrics.finite(values, len(members)))
            if len(bad) == len(members):
                raise UserError(_diverged(update, keep))
            for index in bad:
                name = list(members)[index]
                if lost.setdefault(name, update) == update:
                    bar.write(f"{name}: not finite numbers from update {update} on")
            history.append(record)
            if keep and keep.log:
                keep.log.append(record)
            bar.set_postfix_str(metrics.postfix(values), refresh=False)
            bar.update()
            stopped = largest(received[0] if received else 0)  # whichever process was told
            last = update == config.updates or stopped
            due = last or update % config.checkpoint_every == 0
            if keep and (due or update in switches(members)):
                if keep.log:
                    keep.log.sync()  # a checkpoint never knows more than the metrics do
                keep.checkpoints.save(update, state, members, keep.score(state))
            if stopped:
                break
    return state, history, stopped or None


def _diverged(update: int, keep: _Keep | None) -> str:
    kept = f" the checkpoint of update {keep.checkpoints.latest()} is kept;" if keep else ""
    return (
        f"update {update}: loss, gradient or parameters are not finite numbers;{kept} a smaller"
        " --ppo.learning_rate may help"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM so that the loop can save first; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: Any) -> None:
        received.append(number)
        for known, handler in previous.items():
            signal.signal(known, handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raises UserError if a new run would overwrite one, or there is none to resume."""
    kept = ("config.yaml", "checkpoints", POPULATION)
    holds_run = any((folder / name).exists() for name in kept)
    if holds_run and not resume:
        raise UserError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another"
            " --output-dir"
        )
    if resume and not holds_run:
        raise UserError(f"{folder} holds no run to resume")
    if resume and (population := population_of(folder)):
        raise UserError(f"{folder} is a member of a population; resume {population[0]}")
    # What is refused is refused now, not after minutes of loading.
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"--output-dir: cannot write to {nearest}")
