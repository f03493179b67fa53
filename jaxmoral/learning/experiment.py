"""From configurations to a compiled update: games, opponents, rewards, prompts, the first state.

One configuration makes a run; several, which differ only in what may vary within one compiled step,
make a population: their states, environments and settings are stacked on a leading axis over one
frozen base.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config, differences
from jaxmoral.devices.mesh import Layout, map_spread, place, shardings
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition, check_labels
from jaxmoral.language.suites import check_suites
from jaxmoral.learning import ppo, token_ppo
from jaxmoral.learning.agent import Agent, drawable, presentation_with
from jaxmoral.learning.lookup import find_game, find_opponent, training_game
from jaxmoral.learning.policy import reference_table
from jaxmoral.world import opponents
from jaxmoral.world.games import SETS, Game, corner_payoffs, draw_payoffs, make_games, mirror
from jaxmoral.world.rewards import Reward, add_illegal_opponent, get_reward, reward_table
from jaxmoral.world.rollout import Draws, Environment
from jaxmoral.world.streams import Streams

LEARNER = "learner"  # the opponent that is an agent itself
Step = Callable[[ppo.TrainState, int], tuple[ppo.TrainState, ppo.Metrics]]
# What may differ within a population: whole groups, and keys.
VARYING_GROUPS = ("reward.", "evaluation.")
VARYING = (
    "seed",
    "env.game",
    "env.opponent",
    "env.opponent_illegal",
    "env.noise",
    *(f"prompt.{name}" for name in ("labels", "random_labels", "wording", "persona")),
    "prompt.table_order",
    *(f"ppo.{name}" for name in ppo.ADJUSTABLE),
)


def resolve(config: Config) -> Config:
    """Checks the configuration's own games and opponents and all names, settles "auto"."""
    make_games(config.games)
    if LEARNER in opponents.make_opponents(config.opponents):
        raise UserError(f"opponents.{LEARNER}: the name stands for an agent that learns")
    game = training_game(config)
    if config.env.opponent == LEARNER:
        if game.num_players > 2:
            raise UserError(f"env.opponent: learner needs a game of two players, not {game.name}")
    else:
        opponent = find_opponent(config, config.env.opponent, game)
        _check_streams(config, opponent)
    rewards = [get_reward(config.reward.name)]
    if config.reward.then is not None:
        rewards.append(get_reward(config.reward.then, "reward.then"))
    for reward in rewards:
        reward_table(game, reward, config.reward.xi, config.reward.illegal)
    if config.env.payoff_draws:
        _check_draws(config, game, rewards)
    for name in config.evaluation.opponents:
        find_opponent(config, name, game)
    for name in config.evaluation.games:
        if name not in SETS:
            find_game(config, name)
    check_suites(config.evaluation.suites)
    check_labels(config.evaluation.labels, "evaluation.labels")
    presentation_with(config, config.prompt.labels)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    schedule = config.reward
    if schedule.then is not None and schedule.transition == "switch" and not schedule.switch_at:
        schedule = dataclasses.replace(schedule, switch_at=config.updates // 2)
    model = dataclasses.replace(config.model, dtype=dtype)
    return dataclasses.replace(config, model=model, reward=schedule)


def _check_draws(config: Config, game: Game, rewards: Sequence[Reward]) -> None:
    """Raises UserError if payoffs can be drawn that the opponent or a reward cannot use."""
    low, high = config.env.payoff_range
    for drawn in corner_payoffs(game, low, high):
        try:
            if config.env.opponent != LEARNER:
                find_opponent(config, config.env.opponent, drawn)
            for reward in rewards:
                reward_table(drawn, reward, config.reward.xi, config.reward.illegal)
        except UserError as error:
            shown = ", ".join(f"{points:g}" for points in drawn.payoffs[0].ravel())
            raise UserError(
                f"env.payoff_range: {low} to {high} holds payoffs that do not do, e.g. own points"
                f" {shown} ({error})"
            ) from None


def _check_streams(config: Config, opponent: opponents.Opponent) -> None:
    """Raises UserError if the paper's streams, whose coins are fair, cannot play the opponent."""
    sure = np.isin(opponent.moves, (0, 1)).all() and opponent.moves.shape[1] == 2
    if config.env.streams == "numpy" and not sure and config.env.opponent != "random":
        raise UserError(
            f"env.streams: numpy has no numbers for {config.env.opponent}; use env.streams jax, or"
            " an opponent of two players that leaves nothing to chance, random or learner"
        )


def check_population(members: Sequence[Config]) -> None:
    """Raises UserError if members differ in what cannot vary within one compiled step."""
    first = members[0]
    for other in members[1:]:
        for key in differences(first, other):
            if key not in VARYING and not key.startswith(VARYING_GROUPS):
                groups = [f"{group}*" for group in VARYING_GROUPS]
                raise UserError(
                    f"{key}: cannot vary within one population, whose members share one compiled"
                    " step; write a file for each value and run them with python -m"
                    f" jaxmoral.sweep. What may vary: {', '.join([*groups, *VARYING])}"
                )
    kinds = {config.env.opponent == LEARNER for config in members}
    if len(kinds) > 1:
        raise UserError("env.opponent: learner cannot share a population with other opponents")
    if len({training_game(config).num_players for config in members}) > 1:
        raise UserError("env.game: games of a population must have the same number of players")


def player_games(config: Config, update: int = 0) -> list[list[Game]]:
    """The training games as each learning player sees them; drawn anew each update if asked for."""
    games = [training_game(config)]
    if config.env.payoff_draws:
        random = np.random.default_rng([config.seed, update])
        games = [
            draw_payoffs(random, games[0], *config.env.payoff_range)
            for _ in range(config.env.payoff_draws)
        ]
    if config.env.opponent == LEARNER:
        return [games, [mirror(game) for game in games]]
    return [games]


def transition(config: Config, update: int) -> float:
    """How far the reward has gone from the first to the second, 0 to 1, in this update."""
    reward = config.reward
    if reward.then is None:
        return 0.0
    if reward.transition == "linear":
        return update / max(config.updates - 1, 1)
    return float(reward.switch_at is not None and update >= reward.switch_at)


def environment(config: Config, update: int = 0) -> Environment:
    """The training game's opponent and rewards in an update."""
    settings, env = config.reward, config.env
    share = transition(config, update)
    games = player_games(config, update)

    def table(game: Game, name: str) -> np.ndarray:
        rows = reward_table(
            game, get_reward(name), settings.xi, settings.illegal, settings.normalise
        )
        if env.opponent != LEARNER:
            return rows
        return add_illegal_opponent(rows, env.opponent_illegal, name, settings.illegal)

    def blended(game: Game) -> np.ndarray:
        if share == 0:
            return table(game, settings.name)
        assert settings.then is not None
        later = table(game, settings.then)
        return later if share == 1 else (1 - share) * table(game, settings.name) + share * later

    rewards = np.array([[blended(game) for game in player] for player in games], np.float32)
    noise = np.array(env.noise, np.float32) if env.noise else None
    if env.opponent == LEARNER:
        return Environment(None, rewards, noise)
    # Some know the payoffs.
    machines = [find_opponent(config, env.opponent, game) for game in games[0]]
    opponent = opponents.stack(machines) if env.payoff_draws else machines[0]
    return Environment(opponent, rewards[0], noise)


def environments(members: Sequence[Config], update: int) -> Environment:
    """The members' environments, stacked unless there is only one."""
    each = [environment(config, update) for config in members]
    if len(each) == 1:
        return each[0]
    if any(one.noise is not None for one in each):
        silent = np.zeros((), np.float32)
        each = [one._replace(noise=silent if one.noise is None else one.noise) for one in each]
    machines = [one.opponent for one in each if one.opponent is not None]
    stacked = jax.tree.map(lambda *x: np.stack(x), *(one._replace(opponent=None) for one in each))
    return stacked._replace(opponent=opponents.stack(machines) if machines else None)


def prompts_differ(members: Sequence[tuple[Config, Agent]]) -> bool:
    """Whether members of a population see different prompts, now or in a later update."""
    seen = {
        (
            training_game(config).name,
            agent.presentation,
            config.seed if config.env.payoff_draws else None,
        )
        for config, agent in members
    }
    return len(seen) > 1


def packed_prompts(members: Sequence[tuple[Config, Agent]], update: int) -> Any:
    """Every player's prompts, `[num_players, num_chunks, ...]`.

    With a leading axis of members if `prompts_differ`.
    """
    shared = not prompts_differ(members)
    conditions = [
        [
            [Condition(game, agent.presentation) for game in player]
            for player in player_games(config, update)
        ]
        for config, agent in members
    ]
    groups = [
        player for players in (conditions[:1] if shared else conditions) for player in players
    ]
    config, agent = members[0]
    inputs = agent.inputs(groups, drawable(config))  # so that every update's have one shape
    if not shared:
        num_players = len(conditions[0])
        lead = (len(members), num_players)
        inputs = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), inputs)
    return inputs


def initial_state(config: Config, agent: Agent) -> Callable[..., tuple[ppo.TrainState, jax.Array]]:
    """A pure function from the seed and settings to the first state and the updates' PRNG key."""
    optimiser = ppo.make_optimiser(config.ppo, config.updates)
    num_players = len(player_games(config))

    def init(seed: jax.Array, kl_coef: jax.Array) -> tuple[ppo.TrainState, jax.Array]:
        init_key, updates_key = jax.random.split(jax.random.key(seed))
        state = ppo.init_state(init_key, agent.policy, optimiser, kl_coef, num_players)
        return state, updates_key

    return init


def first_states(members: Sequence[Config], agent: Agent) -> tuple[ppo.TrainState, jax.Array]:
    """The state before the first update and the PRNG keys, stacked unless there is one member."""
    init = initial_state(members[0], agent)
    alone = len(members) == 1
    seeds = np.array([config.seed for config in members], np.uint32)
    weights = np.array([config.ppo.kl_coef for config in members], np.float32)
    if alone:
        arguments = seeds[0], weights[0]
    else:
        init = jax.vmap(init, out_axes=(population_axes(None, 0), 0))
        arguments = seeds, weights
    state, _ = jax.eval_shape(init, *arguments)
    where = shardings(state, agent.layout, population_axes(False, not alone))
    out = where, _where(agent, alone)
    return jax.jit(init, out_shardings=out, compiler_options=on_cpu(ONCE))(*arguments)


def population_axes(update: Any, rest: Any) -> Any:
    """A prefix of a state: one thing for the number of updates, which members share, and a rest."""
    return ppo.TrainState(update, rest, rest, rest, rest)


def _where(agent: Agent, shared: bool) -> jax.sharding.NamedSharding:
    """Where arrays go that are the same for all members, or have a leading axis of them."""
    return agent.layout.sharding(*(() if shared else (agent.layout.lead_axes,)))


# On a CPU steps that take all cores are faster in turns than side by side, and what runs once and
# takes no time is not worth much compiling.
OFTEN: dict[str, str | bool] = {}
if jax.__version_info__[:2] == (0, 10):  # a version that does not know an option refuses it
    OFTEN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


def on_cpu(options: dict[str, str | bool]) -> dict[str, str | bool]:
    """These options for the compiler if it compiles for a CPU."""
    return options if jax.default_backend() == "cpu" else {}


def compile_update(
    members: Sequence[tuple[Config, Agent]],
) -> tuple[ppo.TrainState, Step]:
    """Returns the state before the first update, and the compiled update (it donates the state).

    Args:
      members: resolved configurations, and the same agent for all but its presentation. With more
        than one everything has a leading axis of members.
    """
    configs = [config for config, _ in members]
    config, agent = members[0]
    alone = len(members) == 1
    state, updates_key = first_states(configs, agent)
    if agent.adapter is not None:
        lead = (1 if alone else len(members), len(player_games(config)))
        spread = lambda leaf: np.broadcast_to(leaf, (*lead[alone:], *leaf.shape))
        start = jax.tree.map(spread, agent.adapter)
        where = jax.tree.map(lambda leaf: leaf.sharding, state.trainable["adapter"])
        state = state._replace(trainable=state.trainable | {"adapter": place(start, where)})
    stacked = prompts_differ(members)
    each, prompted = _where(agent, alone), _where(agent, not stacked)
    inputs = place(packed_prompts(members, 0), prompted)

    one = lambda frozen, inputs: reference_table(agent.policy, frozen, inputs)
    refer = lambda frozen, inputs: ppo.per_player(partial(one, frozen), inputs)
    if stacked:
        refer_one = refer
        refer = lambda frozen, inputs: map_spread(partial(refer_one, frozen), inputs, agent.layout)
    refer = jax.jit(refer, out_shardings=prompted, compiler_options=on_cpu(OFTEN))
    reference = refer(agent.frozen, inputs)
    make = token_ppo.make_update if config.ppo.level == "token" else ppo.make_update
    update = make(
        agent.policy,
        config.ppo,
        agent.presentation.remembers(training_game(config)),
        config.updates,
        config.env.episodes,
        config.env.rounds,
    )
    settings = ppo.adjustable(config.ppo)
    if not alone:
        adjusted = [ppo.adjustable(config.ppo) for config in configs]
        settings = {name: np.stack([one[name] for one in adjusted]) for name in settings}
        # On a CPU one adapter's products fill it, and its activations alone stay in the caches.
        in_turns = agent.model is not None and jax.default_backend() == "cpu"
        update = over_members(update, stacked, agent.layout, in_turns)
    settings = place(settings, each)
    draw = make_draws(configs)
    constant = place(environments(configs, 0), each)
    changing = any(config.reward.then is not None for config in configs)
    drawn = config.env.payoff_draws > 0

    def arguments(update: int) -> tuple:
        shown, expected = inputs, reference
        if drawn and update:
            shown = place(packed_prompts(members, update), prompted)
            expected = refer(agent.frozen, shown)
        arena = place(environments(configs, update), each) if changing or drawn else constant
        draws = place(draw(update), each)
        return updates_key, agent.frozen, shown, arena, expected, settings, draws

    out = jax.tree.map(lambda leaf: leaf.sharding, state), agent.layout.sharding()
    jitted = jax.jit(update, donate_argnums=0, out_shardings=out)
    compiled = jitted.lower(state, *arguments(0)).compile(on_cpu(OFTEN))
    return state, lambda state, update: compiled(state, *arguments(update))


def over_members(
    update: Callable, stacked: bool, layout: Layout | None = None, in_turns: bool = False
) -> Callable:
    """An update of a whole population, given one member's.

    Args:
      update: of `ppo.make_update`.
      stacked: whether prompts and reference differ between members.
      layout: what spreads the members.
      in_turns: whether members on the same place take turns instead of being computed at once.
    """

    def together(state, keys, frozen, inputs, environment, reference, settings, draws):
        def one(xs):
            rest, key, environment, settings, draws, *own = xs
            shown, expected = own or (inputs, reference)
            member = ppo.TrainState(state.update, *rest)
            member, metrics = update(
                member, key, frozen, shown, environment, expected, settings, draws
            )
            return member[1:], metrics

        own = (inputs, reference) if stacked else ()
        xs = (state[1:], keys, environment, settings, draws, *own)
        if in_turns:
            rest, metrics = map_spread(one, xs, layout)
        else:
            axes = None if layout is None else layout.lead_axes
            rest, metrics = jax.vmap(one, spmd_axis_name=axes)(xs)
        return ppo.TrainState(state.update + 1, *rest), metrics

    return together


def make_draws(members: Sequence[Config]) -> Callable[[int], Draws | None]:
    """The paper's random numbers of each update, or None for JAX's own.

    Updates are asked for in ascending order; those skipped (made by an earlier session) are drawn
    and thrown away, so that a resumed run goes on in the same stream.
    """
    if members[0].env.streams == "jax":
        return lambda update: None
    each, made = [Streams(config.seed) for config in members], -1
    newest: Draws | None = None

    def next_draws() -> Draws:
        drawn = []
        for streams, config in zip(each, members, strict=True):
            env = config.env
            fixed = {"always-cooperate": 0, "always-defect": 1}.get(env.opponent)
            episodes = streams.draw(
                env.episodes,
                env.rounds,
                num_players=len(player_games(config)),
                remembered=fixed,
                coin=env.opponent == "random",
            )
            drawn.append(episodes)
        return drawn[0] if len(drawn) == 1 else jax.tree.map(lambda *x: np.stack(x), *drawn)

    def draw(update: int) -> Draws | None:
        nonlocal made, newest
        while made < update:
            newest = next_draws()
            made += 1
        return newest

    return draw
