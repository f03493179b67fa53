"""A configuration's names checked and its "auto" settled, before anything is loaded."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxmoral.config import Config, MixtureConfig
from jaxmoral.config.states import Resolved
from jaxmoral.errors import UserError, telling
from jaxmoral.language import prompts
from jaxmoral.language.prompts import check_labels
from jaxmoral.language.suites import check_suites
from jaxmoral.learning.lookup import LEARNER, find_game, find_games, find_opponent, training_game
from jaxmoral.learning.mixture import Choice, axes, label_pairs, num_choices, presentation_with
from jaxmoral.learning.plugins import settle_plugins
from jaxmoral.learning.run_folder import is_run, named_checkpoint
from jaxmoral.learning.whom import PAST, key_of_met, met_by
from jaxmoral.models.peft import is_adapter
from jaxmoral.world.games import SETS, Game, corner_payoffs, make_games
from jaxmoral.world.machines import Opponent
from jaxmoral.world.opponents import make_opponents
from jaxmoral.world.rewards import Reward, get_reward, reward_table


def resolve(config: Config) -> Resolved:
    """Runs plugins, checks own games and opponents and all names, settles "auto"."""
    config = dataclasses.replace(config, plugins=settle_plugins(config.plugins))
    make_games(config.games)
    for name in make_opponents(config.opponents):
        if name == LEARNER or PAST.fullmatch(name):
            raise UserError(f"opponents.{name}: the name stands for an agent that learns")
    with telling("env.game", "game"):
        game = training_game(config)
    mixture = _resolved_mixture(config)
    config = _with_first(dataclasses.replace(config, mixture=mixture))
    if config.reward.exploitability and game.num_players > 2:
        raise UserError(
            f"reward.exploitability: needs a game of two players, {game.name} has"
            f" {game.num_players}"
        )
    rewards = [get_reward(config.reward.name)]
    if config.reward.then is not None:
        rewards.append(get_reward(config.reward.then, "reward.then"))
    games: Sequence[Game] = [game] if mixture.games is None else find_games(config, mixture.games)
    for played in games:
        _check_opponents(config, played)
        for reward in rewards:
            reward_table(played, reward, config.reward.xi, config.reward.illegal)
        if config.env.payoff_draws:
            _check_draws(config, played, rewards)
    with telling("evaluation.opponents", "opponent"):
        for name in config.evaluation.opponents:
            find_opponent(config, name, game)
    with telling("evaluation.games", "game"):
        for name in config.evaluation.games:
            if name not in SETS:
                find_game(config, name)
    check_suites(config.evaluation.suites)
    check_labels(config.evaluation.labels, "evaluation.labels")
    presentation_with(config, config.prompt.labels)
    persona = prompts.inline("distil.persona", config.distil.persona, prompts.PERSONAS)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    schedule = config.reward
    if schedule.then is not None and schedule.transition == "switch" and not schedule.switch_at:
        schedule = dataclasses.replace(schedule, switch_at=config.updates // 2)
    model = dataclasses.replace(config.model, dtype=dtype)
    distil = dataclasses.replace(config.distil, persona=persona)
    config = dataclasses.replace(config, model=model, reward=schedule, distil=distil)
    return Resolved(config)


def _resolved_mixture(config: Config) -> MixtureConfig:
    """The mixture with files read in; raises UserError if conditions cannot be drawn from it."""
    mixture = config.mixture
    if mixture.wordings is not None:
        texts = [prompts.inline("mixture.wordings", w, prompts.WORDINGS) for w in mixture.wordings]
        mixture = dataclasses.replace(mixture, wordings=tuple(dict.fromkeys(texts)))
    if mixture.personas is not None:
        texts = [prompts.inline("mixture.personas", p, prompts.PERSONAS) for p in mixture.personas]
        mixture = dataclasses.replace(mixture, personas=tuple(dict.fromkeys(texts)))
    if mixture.table_orders is not None:
        orders = tuple(dict.fromkeys(mixture.table_orders))
        mixture = dataclasses.replace(mixture, table_orders=orders)
    for wording in mixture.wordings or ():
        prompt = dataclasses.replace(config.prompt, wording=wording)
        with telling("mixture.wordings", "prompt.wording"):
            presentation_with(dataclasses.replace(config, prompt=prompt), config.prompt.labels)
    config = dataclasses.replace(config, mixture=mixture)
    total = num_choices(config)
    if mixture.conditions > total:
        raise UserError(
            f"mixture.conditions: {mixture.conditions} cannot be drawn, the mixture holds {total};"
            " lower it or widen an axis"
        )
    if mixture.both_ways and mixture.labels is None:
        raise UserError("mixture.both_ways: needs mixture.labels")
    if mixture.labels is not None and config.prompt.random_labels:
        raise UserError("prompt.random_labels: cannot stand with mixture.labels")
    if isinstance(mixture.labels, str):  # spelled out, so that a run knows what it was
        one_way = dataclasses.replace(mixture, both_ways=False)
        pairs = label_pairs(dataclasses.replace(config, mixture=one_way))
        mixture = dataclasses.replace(mixture, labels=tuple(pairs or ()))
    return mixture


def _with_first(config: Config) -> Config:
    """The configuration whose game and prompt are the first condition of its mixture."""
    first, env = Choice(*(values[0] for values in axes(config))), config.env
    if config.mixture.games is not None:
        env = dataclasses.replace(env, game=first.game.name)
    prompt = dataclasses.replace(config.prompt, **first.words)
    return dataclasses.replace(config, env=env, prompt=prompt)


def _check_opponents(config: Config, game: Game) -> None:
    """Raises UserError if somebody who is met cannot play a game."""
    key = key_of_met(config)
    for name, kind, *_ in met_by(config):
        if kind == "machine":
            _check_streams(config, _machine(config, name, game))
        elif game.num_players > 2:
            raise UserError(f"{key}: {name} needs a game of two players, not {game.name}")
        elif kind == "learner":
            if config.mixture.opponents is not None:
                raise UserError("mixture.opponents: a learner cannot be one of several")
        elif config.env.streams == "numpy":
            raise UserError(f"{key}: {name} is an agent and needs env.streams jax")


def _machine(config: Config, name: str, game: Game) -> Opponent:
    """The machine of a name; says so if a folder of that name is likely to be meant."""
    try:
        with telling(key_of_met(config), "opponent"):
            return find_opponent(config, name, game)
    except UserError:
        folder, _ = named_checkpoint(name)
        for what, holds in (("a run", is_run), ("an adapter's", is_adapter)):
            if holds(folder):
                raise UserError(
                    f"{key_of_met(config)}: {name} is {what} folder; write ./{name}"
                ) from None
        raise


def _check_draws(config: Config, game: Game, rewards: Sequence[Reward]) -> None:
    """Raises UserError if payoffs can be drawn that the opponent or a reward cannot use."""
    low, high = config.env.payoff_range
    for drawn in corner_payoffs(game, low, high):
        try:
            _check_opponents(config, drawn)
            for reward in rewards:
                reward_table(drawn, reward, config.reward.xi, config.reward.illegal)
        except UserError as error:
            shown = ", ".join(f"{points:g}" for points in drawn.payoffs[0].ravel())
            raise UserError(
                f"env.payoff_range: {low} to {high} holds payoffs that do not do, e.g. own points"
                f" {shown} ({error})"
            ) from None


def _check_streams(config: Config, opponent: Opponent) -> None:
    """Raises UserError if the paper's streams, whose coins are fair, cannot play the opponent."""
    known = config.env.opponent == "random" or np.isin(opponent.moves, (0, 1)).all()
    if config.env.streams == "numpy" and not (known and opponent.moves.shape[1] == 2):
        raise UserError(
            f"env.streams: numpy has no numbers for {config.env.opponent}; use env.streams jax, or"
            " an opponent of two players that leaves nothing to chance, random or learner"
        )
