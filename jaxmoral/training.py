"""The training loop around the jitted update: set-up, progress, checkpoints, interruption."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxmoral import config as configs
from jaxmoral import metrics, ppo, token_ppo
from jaxmoral.agent import Agent, Condition, make_agent, settle
from jaxmoral.checkpoint import Checkpoints
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.games import Game, get_game, make_game, mirror, register
from jaxmoral.opponents import get_opponent
from jaxmoral.policy import reference_table
from jaxmoral.prompts import Presentation, check, check_labels
from jaxmoral.rewards import add_illegal_opponent, get_reward, reward_table
from jaxmoral.rollout import Draws, Environment
from jaxmoral.streams import Streams
from jaxmoral.suites import check_suites

LEARNER = "learner"  # the opponent that is an agent itself
Step = Callable[[ppo.TrainState, int], tuple[ppo.TrainState, ppo.Metrics]]


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

    @property
    def trainable(self) -> Any:
        """The agent's trained parameters; of two learners the first one's."""
        return first_player(self.state)


def first_player(state: ppo.TrainState) -> Any:
    """The first player's parameters."""
    return jax.tree.map(lambda leaf: leaf[0], state.trainable)


def resolve(config: Config) -> Config:
    """Registers the configuration's games, checks its names, and settles what "auto" means."""
    for name, pairs in config.games.items():
        register(make_game(name, pairs))
    get_game(config.env.game)
    if config.env.opponent != LEARNER:
        get_opponent(config.env.opponent)
    get_reward(config.reward.name)
    if config.reward.then is not None:
        get_reward(config.reward.then, "reward.then")
    for name in config.evaluation.opponents:
        get_opponent(name)
    for name in config.evaluation.games:
        if name != "all":
            get_game(name)
    check_suites(config.evaluation.suites)
    check_labels(config.evaluation.labels, "evaluation.labels")
    prompt = config.prompt
    check(Presentation(prompt.wording, prompt.persona, prompt.labels, prompt.table_order))
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    reward = config.reward
    if reward.then is not None and reward.switch_at is None:
        reward = dataclasses.replace(reward, switch_at=config.updates // 2)
    model = dataclasses.replace(config.model, dtype=dtype)
    return dataclasses.replace(config, model=model, reward=reward)


def environment(config: Config, reward_name: str | None = None) -> Environment:
    """The training game's opponent and rewards (by default of the first reward)."""
    name = reward_name or config.reward.name
    xi, illegal = config.reward.xi, config.reward.illegal
    tables = [
        reward_table(game.payoffs, get_reward(name), xi, illegal) for game in player_games(config)
    ]
    if config.env.opponent != LEARNER:
        return Environment(get_opponent(config.env.opponent), tables[0])
    rule = config.env.opponent_illegal
    return Environment(
        None, np.stack([add_illegal_opponent(table, rule, name, illegal) for table in tables])
    )


def player_games(config: Config) -> list[Game]:
    """The training game as each learning player sees it."""
    game = get_game(config.env.game)
    return [game, mirror(game)] if config.env.opponent == LEARNER else [game]


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
    with Checkpoints(folder, config.reward.switch_at) as checkpoints:
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
        num_players = len(player_games(config))
        state = ppo.init_state(init_key, agent.policy, optimiser, config.ppo, num_players)
        return state, updates_key

    return init


def compile_update(config: Config, agent: Agent) -> tuple[ppo.TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state)."""
    conditions = [Condition(game, agent.presentation) for game in player_games(config)]
    rewards = [config.reward.name, config.reward.then or config.reward.name]
    phases = [environment(config, name) for name in rewards]
    inputs, phases = jax.device_put((agent.inputs(conditions), phases))
    state, updates_key = jax.jit(initial_state(config, agent))(np.uint32(config.seed))
    if agent.adapter is not None:
        start = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(conditions)), agent.adapter)
        state = state._replace(trainable=state.trainable | {"adapter": start})
    one = lambda frozen, inputs: reference_table(agent.policy, frozen, inputs)
    reference = jax.jit(lambda frozen, inputs: ppo.per_player(partial(one, frozen), inputs))(
        agent.frozen, inputs
    )
    make = token_ppo.make_update if config.ppo.level == "token" else ppo.make_update
    update = make(
        agent.policy,
        ppo.make_optimiser(config.ppo, config.updates),
        config.ppo,
        config.updates,
        config.env.episodes,
        config.env.rounds,
    )
    draw = make_draws(config)

    def arguments(update: int) -> tuple:
        switch_at = config.reward.switch_at
        phase = phases[switch_at is not None and update >= switch_at]
        return updates_key, agent.frozen, inputs, phase, reference, draw(update)

    compiled = jax.jit(update, donate_argnums=0).lower(state, *arguments(0)).compile()
    return state, lambda state, update: compiled(state, *arguments(update))


def make_draws(config: Config) -> Callable[[int], Draws | None]:
    """The paper's random numbers of each update, or None for JAX's own.

    Updates are asked for in ascending order; those skipped (made by an earlier session) are drawn
    and thrown away, so that a resumed run goes on in the same stream.
    """
    env = config.env
    if env.streams == "jax":
        return lambda update: None
    streams, made = Streams(config.seed), -1
    newest: Draws | None = None
    num_players = len(player_games(config))
    fixed = {"always-cooperate": 0, "always-defect": 1}.get(env.opponent)

    def draw(update: int) -> Draws | None:
        nonlocal made, newest
        while made < update:
            newest = streams.draw(
                env.episodes, env.rounds, num_players, fixed, env.opponent == "random"
            )
            made += 1
        return newest

    return draw


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
            state, values = step(state, update - 1)
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
            due = last or update % config.checkpoint_every == 0
            if checkpoints and (due or update == config.reward.switch_at):
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
