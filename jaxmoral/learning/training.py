"""The training loop around the jitted update: progress, checkpoints, interruption, populations."""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmoral.config import ALONE, Config
from jaxmoral.config.checks import check_config
from jaxmoral.config.states import Pinned, Resolved
from jaxmoral.devices.cluster import is_first, largest, on_first
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning import metrics
from jaxmoral.learning.agent import (
    Agent,
    check_lengths,
    make_agent,
    make_presentation,
    settle,
)
from jaxmoral.learning.anchor import with_texts, write_texts
from jaxmoral.learning.channel import make_thinking
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.experiment import Step, compile_update
from jaxmoral.learning.met import Met, check_stored, pinned
from jaxmoral.learning.mixture import drawn, every_condition, num_choices
from jaxmoral.learning.population import check_asked, check_population, member_state
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.resume import go_on
from jaxmoral.learning.run_folder import Place, check_run_folder, locked, write_configs
from jaxmoral.learning.score import make_score
from jaxmoral.learning.starting import pin_adapter, start_from
from jaxmoral.learning.state import TrainState
from jaxmoral.learning.summary import summary_lines
from jaxmoral.learning.trackers import Trackers, check_trackers
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.learning.whom import past_updates


def fit_agent(
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
    return fit_population({ALONE: config}, output_dir, resume, say, extend=extend)[ALONE]


def fit_population(
    members: Mapping[str, Config],
    output_dir: Place | Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    *,
    extend: bool = False,
) -> dict[str, TrainedAgent]:
    """Trains several agents at once on one frozen base, each as if it were alone.

    Args:
      members: the experiments by name; see `jaxmoral.config.load_members`.
      output_dir: the population's folder, a run folder per member in it; of a place that has one,
        `push` is called whenever a checkpoint is complete.
      resume, extend: as for `fit_agent`.
      say: where lines for people go.

    Raises:
      UserError: as for `fit_agent`, or the members cannot share one compiled step.
    """
    for name in members if len(members) > 1 else ():
        if Path(name).name != name or name in ("", ".."):
            raise UserError(f"members: {name!r} cannot be the name of a folder")
    if not members:
        raise UserError("members: there are none")
    for config in members.values():
        check_config(config)
    place = output_dir
    if place is not None and not isinstance(place, Place):
        place = Place(Path(place))
    if len(members) == 1:  # a population of one is a run, whatever it is called
        ((name, config),) = members.items()
        return {name: _train({ALONE: config}, place, resume=resume, extend=extend, say=say)[ALONE]}
    return _train(members, place, resume=resume, extend=extend, say=say)


def _train(
    members: Mapping[str, Config],
    place: Place | None,
    *,
    resume: bool,
    extend: bool,
    say: Callable[[str], None],
) -> dict[str, TrainedAgent]:
    folder = place.folder if place else None
    if folder:
        on_first(lambda: check_run_folder(folder, resume))
    if not is_first():
        say = _say_nothing
    check_asked(list(members.values()))
    resolved = {name: resolve(config) for name, config in members.items()}
    check_population(list(resolved.values()))
    if folder:
        on_first(lambda: check_trackers(next(iter(resolved.values())).tracker))
    begun = go_on(folder, members, extend=extend, say=say) if folder and resume else None
    started = time.perf_counter()
    check_stored(list(resolved.values()))
    start = begun or {name: pin_adapter(config) for name, config in resolved.items()}
    configs, agents = _make_agents(start, say, begun=begun is not None)
    say(f"loaded in {time.perf_counter() - started:.1f} s; compiling ...")
    started = time.perf_counter()
    agents = with_texts(configs, agents, folder if begun else None)
    pairs = [(configs[name], agents[name]) for name in configs]
    met = Met(pairs)
    state, step = compile_update(pairs, met)
    say(f"compiled in {time.perf_counter() - started:.1f} s")

    if place is None or folder is None:
        state, history, interrupted = _loop(configs, state, step=step)
    else:
        with locked(folder, resume):
            if not begun:  # first of all: what is in a folder can be resumed from here on
                on_first(lambda: _write_beginning(configs, agents, folder))
            score = make_score(pairs, met)
            state, history, interrupted = _loop_in(
                place, configs, state=state, step=step, score=score, met=met, say=say
            )
            if interrupted is None and len(configs) > 1:
                on_first(lambda: metrics.share(folder, list(configs)))
    alone = len(configs) == 1
    return {
        name: TrainedAgent(
            config,
            agents[name],
            state if alone else member_state(state, index),
            history if alone else [metrics.of_member(record, index) for record in history],
            interrupted,
        )
        for index, (name, config) in enumerate(configs.items())
    }


def _write_beginning(
    members: Mapping[str, Pinned], agents: Mapping[str, Agent], folder: Path
) -> None:
    """What a run folder holds before any checkpoint."""
    write_configs(members, folder)
    write_texts(agents, folder)


def _say_nothing(_: str) -> None:
    """What processes but the first say."""


def _make_agents(
    members: Mapping[str, Resolved], say: Callable[[str], None], *, begun: bool
) -> tuple[dict[str, Pinned], dict[str, Agent]]:
    """Loads the base once for all members and says what they are: pinned members, their agents."""
    start = next(iter(members.values()))
    if begun:  # the checkpoint holds the adapter; the folder it came from may be gone
        start = dataclasses.replace(start, lora=dataclasses.replace(start.lora, adapter=None))
    first = start_from(start, make_agent(start, len(members), say))
    agents = {
        name: first._replace(presentation=make_presentation(config, first.model))
        for name, config in members.items()
    }
    _check_alike(members, agents)
    configs = {name: pinned(settle(config, agents[name])) for name, config in members.items()}
    say("\n".join(first.summary))
    if len(configs) > 1:
        some = [*list(configs)[:3], *(["..."] if len(configs) > 3 else [])]
        say(f"members    {len(configs)}: {'; '.join(some)}")
    say("\n".join(summary_lines(list(configs.values()))))
    return configs, agents


def _check_alike(members: Mapping[str, Resolved], agents: Mapping[str, Agent]) -> None:
    """Raises UserError if the first member's answers have another form than another one's."""
    first = next(iter(agents.values()))
    if len(members) == 1 or first.model is None or not isinstance(first.prompter, Prompter):
        return
    shown: list[Condition] = []
    for name, config in members.items():
        presentation = agents[name].presentation
        wordings = config.mixture.wordings or [presentation.wording]
        if make_thinking(config, first.model, wordings) != first.prompter.thinking:
            raise UserError(
                f"prompt.wording: member {name} would end its thoughts otherwise than the first;"
                " set thinking.cue, or train it alone"
            )
        if config.ppo.level == "token":
            shown += every_condition(config, presentation)
    check_lengths("prompt.labels", first.prompter, shown)


@contextmanager
def _open_log(
    folder: Path, members: Mapping[str, Config], start: int, say: Callable[[str], None]
) -> Iterator[tuple[metrics.MetricsLog, Trackers] | None]:
    """The first process's metrics log and trackers; the others have none."""
    with ExitStack() as stack:
        found: list[tuple[metrics.MetricsLog, Trackers]] = []

        def begin() -> None:
            log = stack.enter_context(metrics.MetricsLog(folder, start))
            trackers = Trackers(folder, members, start=start, say=say)
            found.append((log, stack.enter_context(trackers)))

        on_first(begin)
        yield found[0] if found else None


def kept_updates(members: Mapping[str, Config]) -> list[int]:
    """The updates whose checkpoints are kept: a reward is switched, or a past self is met later."""
    switched = {config.reward.switch_at for config in members.values()}
    past = {update for config in members.values() for update in past_updates(config)}
    return sorted(past | {update for update in switched if update is not None})


def _loop_in(
    place: Place,
    members: Mapping[str, Pinned],
    *,
    state: TrainState,
    step: Step,
    score: Callable[[TrainState], np.ndarray],
    met: Met,
    say: Callable[[str], None],
) -> tuple[TrainState, list[dict], int | None]:
    """`_loop` from the place's newest checkpoint, or from the state if there is none."""
    folder = place.folder
    with Checkpoints(folder, kept_updates(members), writable=True) as checkpoints:
        resumed = checkpoints.latest() is not None
        if resumed:
            state = checkpoints.restore(state, members, set_aside=True, say=say)
            earlier = partial(checkpoints.restore, state, members, say=_say_nothing)
            met.recall(state, lambda update: earlier(update=update))
        else:
            checkpoints.save(0, state, members=members, rewards=score(state))
        with _open_log(folder, members, int(state.update), say) as log:
            if resumed:  # it may be longer now
                on_first(lambda: write_configs(members, folder))
            keep = _Keep(checkpoints, score, log, place.push)
            return _loop(members, state, step=step, keep=keep)


@dataclasses.dataclass(frozen=True)
class _Keep:
    """Where what happens is kept.

    Attributes:
      checkpoints: of the run.
      score: of `make_score`.
      log: in the first process, with the trackers.
      push: is called whenever a checkpoint is complete, if it is there.
    """

    checkpoints: Checkpoints
    score: Callable[[TrainState], np.ndarray]
    log: tuple[metrics.MetricsLog, Trackers] | None
    push: Callable[[], None] | None


def _loop(
    members: Mapping[str, Config], state: TrainState, *, step: Step, keep: _Keep | None = None
) -> tuple[TrainState, list[dict], int | None]:
    """Updates until the end, or until a signal comes: the state, the records, the signal."""
    config = next(iter(members.values()))
    history: list[dict] = []
    start = int(state.update)
    title = config.title if len(members) == 1 else f"{len(members)} members"
    silent = not is_first()
    kept = kept_updates(members)
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
                update,
                values,
                episodes=update * config.env.episodes,
                seconds=seconds,
                num_members=len(members),
            )
            record |= _drawn(members, update - 1)
            bad = np.flatnonzero(~metrics.finite(values, len(members)))
            if len(bad) == len(members):
                raise UserError(_diverged(update, keep))
            for index in bad:
                name = list(members)[index]
                if lost.setdefault(name, update) == update:
                    bar.write(f"{name}: not finite numbers from update {update} on")
            history.append(record)
            if keep and keep.log:
                for sink in keep.log:
                    sink.append(record)
            bar.set_postfix_str(metrics.postfix(values), refresh=False)
            bar.update()
            stopped = largest(received[0] if received else 0)  # whichever process was told
            last = update == config.updates or stopped
            due = last or update % config.checkpoint_every == 0
            if keep and (due or update in kept):
                for sink in keep.log or ():
                    sink.sync()  # a checkpoint never knows more than the metrics do
                keep.checkpoints.save(update, state, members=members, rewards=keep.score(state))
                if keep.push:
                    keep.checkpoints.wait()
                    keep.push()
            if stopped:
                break
    return state, history, stopped or None


def _drawn(members: Mapping[str, Config], update: int) -> dict[str, list]:
    """What a record says of the conditions drawn, of several members a list each."""
    if not any(num_choices(config) > 1 for config in members.values()):
        return {}
    names = [[choice.name for choice in drawn(own, update)] for own in members.values()]
    return {"conditions": names[0] if len(names) == 1 else names}


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
