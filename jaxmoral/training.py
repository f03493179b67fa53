"""The training loop around the jitted update: set-up, progress, checkpoints, interruption."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmoral import config as configs
from jaxmoral import metrics, ppo
from jaxmoral.agent import Agent, make_agent, settle
from jaxmoral.checkpoint import Checkpoints
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.games import get_game, make_game, register
from jaxmoral.opponents import get_opponent
from jaxmoral.prompts import check_labels
from jaxmoral.rewards import get_reward, reward_table
from jaxmoral.rollout import Environment

Step = Callable[[ppo.TrainState], tuple[ppo.TrainState, ppo.Metrics]]


@dataclasses.dataclass(frozen=True)
class TrainedAgent:
    """What a run ends with.

    Attributes:
      config: resolved.
      agent: the policy and its frozen arrays.
      state: after the last update.
      history: one record an update made by this call, as in `metrics.jsonl`.
      interrupted: the signal that ended the run early, or None.
    """

    config: Config
    agent: Agent
    state: ppo.TrainState
    history: list[dict]
    interrupted: int | None = None


def resolve(config: Config) -> Config:
    """Registers the configuration's games, checks its names, and settles what "auto" means."""
    for name, pairs in config.games.items():
        register(make_game(name, pairs))
    get_game(config.env.game)
    get_opponent(config.env.opponent)
    get_reward(config.reward.name)
    for name in config.evaluation.opponents:
        get_opponent(name)
    for name in config.evaluation.games:
        if name != "all":
            get_game(name)
    check_labels(config.prompt.labels)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def environment(config: Config) -> Environment:
    """The training game's opponent and rewards."""
    reward = config.reward
    table = reward_table(
        get_game(config.env.game).payoffs, get_reward(reward.name), reward.xi, reward.illegal
    )
    return Environment(get_opponent(config.env.opponent), table)


def train(
    config: Config,
    output_dir: Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> TrainedAgent:
    """Trains an agent.

    Args:
      config: the experiment.
      output_dir: the run folder; None keeps everything in memory.
      resume: continue from the newest checkpoint of the run folder.
      say: where lines for people go.

    Raises:
      UserError: the configuration cannot be used, the folder holds a run already (or, when
        resuming, none of this configuration), or the loss stopped being a number.
    """
    folder = None if output_dir is None else Path(output_dir)
    if folder:
        check_run_folder(folder, resume)
    config = resolve(config)
    started = time.perf_counter()
    agent = make_agent(config)
    config = settle(config, agent)
    env = config.env
    say("\n".join(agent.summary))
    say(
        f"game       {env.game} against {env.opponent}, {config.reward.name} reward;"
        f" {config.updates} updates of {env.episodes:,} episodes x {env.rounds} rounds"
    )
    say(f"loaded in {time.perf_counter() - started:.1f} s; compiling ...")
    started = time.perf_counter()
    state, step = compile_update(config, agent)
    say(f"compiled in {time.perf_counter() - started:.1f} s")

    if folder is None:
        return _loop(config, agent, state, step, None, None)
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        configs.save(config, folder / "config.yaml")
    with Checkpoints(folder) as checkpoints:
        if resume:
            state = checkpoints.restore(state, config)
        else:
            checkpoints.save(0, state, config)
        with metrics.MetricsLog(folder, int(state.update)) as log:
            return _loop(config, agent, state, step, checkpoints, log)


def initial_state(config: Config, agent: Agent) -> Callable[..., tuple[ppo.TrainState, jax.Array]]:
    """A pure function from the seed to the first state and the PRNG key of the updates."""
    optimiser = ppo.make_optimiser(config.ppo, config.updates)

    def init(seed: jax.Array) -> tuple[ppo.TrainState, jax.Array]:
        init_key, updates_key = jax.random.split(jax.random.key(seed))
        return ppo.init_state(init_key, agent.policy, optimiser, config.ppo), updates_key

    return init


def compile_update(config: Config, agent: Agent) -> tuple[ppo.TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state)."""
    inputs = jax.tree.map(lambda field: field[0], agent.inputs([get_game(config.env.game)]))
    inputs, arena = jax.device_put((inputs, environment(config)))
    state, updates_key = jax.jit(initial_state(config, agent))(np.uint32(config.seed))
    state = state._replace(trainable=agent.start(state.trainable))
    reference = jax.jit(agent.policy.reference)(agent.frozen, inputs)
    fixed = (updates_key, agent.frozen, inputs, arena, reference)
    update = ppo.make_update(
        agent.policy,
        ppo.make_optimiser(config.ppo, config.updates),
        config.ppo,
        config.updates,
        config.env.episodes,
        config.env.rounds,
    )
    compiled = jax.jit(update, donate_argnums=0).lower(state, *fixed).compile()
    return state, lambda state: compiled(state, *fixed)


def _loop(
    config: Config,
    agent: Agent,
    state: ppo.TrainState,
    step: Step,
    checkpoints: Checkpoints | None,
    log: metrics.MetricsLog | None,
) -> TrainedAgent:
    history: list[dict] = []
    start = int(state.update)
    bar = tqdm(total=config.updates, initial=start, desc=config.reward.name, unit="update")
    with bar, _signals() as received:
        for update in range(start + 1, config.updates + 1):
            began = time.perf_counter()
            state, values = step(state)
            values = jax.device_get(values)
            seconds = time.perf_counter() - began
            record = metrics.to_record(update, update * config.env.episodes, seconds, values)
            if not metrics.is_finite(record):
                raise UserError(_diverged(update, checkpoints))
            history.append(record)
            if log:
                log.append(record)
            bar.set_postfix_str(
                f"reward {record['reward_mean']:.2f}, legal {1 - record['p_illegal']:.1%},"
                f" KL {record['kl']:.2f}",
                refresh=False,
            )
            bar.update()
            stop = bool(received)
            last = update == config.updates or stop
            if checkpoints and (last or update % config.checkpoint_every == 0):
                checkpoints.save(update, state, config)
            if stop:
                break
    return TrainedAgent(config, agent, state, history, received[0] if received else None)


def _diverged(update: int, checkpoints: Checkpoints | None) -> str:
    kept = f" the checkpoint of update {checkpoints.latest()} is kept;" if checkpoints else ""
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
    holds_run = (folder / "config.yaml").exists() or (folder / "checkpoints").exists()
    if holds_run and not resume:
        raise UserError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another"
            " --output-dir"
        )
    if resume and not holds_run:
        raise UserError(f"{folder} holds no run to resume")
    # What is refused is refused now, not after minutes of loading.
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"--output-dir: cannot write to {nearest}")
