"""What keys of a configuration must not contradict each other in, each as one line that says so."""

from typing import Any

from jaxmoral.config.schema import Config
from jaxmoral.errors import UserError

MAX_ROUNDS = 2**31 - 1  # of all episodes together, which are indexed in 32 bits


def check_config(given: Any) -> None:
    """Raises UserError if it is no configuration, but a dictionary, say."""
    if not isinstance(given, Config):
        kind = type(given).__name__
        raise UserError(f"config: needs what jaxmoral.parse or jaxmoral.load returns, got a {kind}")


def check(config: Config) -> None:
    """Raises UserError if keys that are each allowed cannot stand together."""
    _check_sizes(config)
    if config.prompt.thinking == "off" and config.prompt.template != "chat":
        raise UserError("prompt.thinking: off needs prompt.template chat")
    _check_reward(config)
    _check_ppo(config)
    _check_env(config)
    _check_thinking(config)
    _check_anchor(config)
    _check_distil(config)


def _check_sizes(config: Config) -> None:
    env, tests = config.env, config.evaluation
    played = {}
    if config.ppo.estimator == "sampled":
        played["env"] = env.episodes, env.rounds
    if "sampled" in tests.protocols:
        played["evaluation"] = tests.episodes, tests.rounds
    for group, (episodes, rounds) in played.items():
        if episodes * rounds > MAX_ROUNDS:
            raise UserError(
                f"{group}.episodes: {episodes:,} of {rounds:,} rounds are {episodes * rounds:,},"
                f" more than arrays can index ({MAX_ROUNDS:,}); lower it or {group}.rounds"
            )
    samples, minibatches = env.episodes * env.rounds, config.ppo.minibatches
    if samples % minibatches:
        raise UserError(
            f"ppo.minibatches: {minibatches} does not divide env.episodes * env.rounds = {samples}"
        )


def _check_reward(config: Config) -> None:
    reward = config.reward
    if reward.switch_at is not None and reward.then is None:
        raise UserError("reward.switch_at: needs reward.then, the reward to switch to")
    if reward.then is not None and (reward.switch_at or 1) >= config.updates:
        raise UserError(
            f"reward.switch_at: must be less than the {config.updates} updates, to leave some to"
            " reward.then"
        )
    if reward.exploitability and config.ppo.level == "token":
        raise UserError("reward.exploitability: needs ppo.level outcome")
    if reward.transition == "linear" and (reward.switch_at or reward.then is None):
        raise UserError("reward.transition: linear needs reward.then, and no reward.switch_at")


def _check_ppo(config: Config) -> None:
    ppo = config.ppo
    if ppo.estimator == "exact":
        if ppo.level == "token" or config.env.streams == "numpy":
            raise UserError("ppo.estimator: exact needs ppo.level outcome and env.streams jax")
        if ppo.minibatches != 1 or ppo.normalise_rewards:
            raise UserError(
                "ppo.estimator: exact needs ppo.minibatches 1 and ppo.normalise_rewards false"
            )
    if ppo.sample_with_dropout and ppo.level != "token":
        raise UserError("ppo.sample_with_dropout: needs ppo.level token")
    if ppo.level == "token" and ppo.barrier_coef:
        raise UserError("ppo.barrier_coef: needs ppo.level outcome")
    if ppo.level == "token" and ppo.minibatches != 1:
        raise UserError("ppo.minibatches: must be 1 with ppo.level token")


def _check_env(config: Config) -> None:
    env = config.env
    if env.streams == "numpy" and (env.memory != 1 or env.blank_start or env.payoff_draws):
        raise UserError(
            "env.streams: numpy needs env.memory 1, env.blank_start false and env.payoff_draws 0"
        )
    if env.payoff_draws and env.episodes % env.payoff_draws:
        raise UserError(
            f"env.payoff_draws: {env.payoff_draws} does not divide env.episodes = {env.episodes}"
        )
    alone = env.opponent == "learner" or env.streams == "numpy"
    if config.mixture.opponents is not None and alone:
        raise UserError(
            "mixture.opponents: cannot stand with env.opponent learner or env.streams numpy"
        )
    mixture, games = config.mixture, max(env.payoff_draws, 1) * config.mixture.conditions
    if mixture.conditions > 1:
        if env.episodes % games:
            raise UserError(
                f"mixture.conditions: {games} games an update do not divide env.episodes ="
                f" {env.episodes}"
            )
        if env.streams == "numpy" or config.ppo.level == "token":
            raise UserError(
                "mixture.conditions: must be 1 with env.streams numpy or ppo.level token"
            )
    low, high = env.payoff_range
    if not -999 <= low < high <= 999:
        raise UserError(f"env.payoff_range: needs two rising numbers within 999, got {low}, {high}")


def _check_thinking(config: Config) -> None:
    thinking = config.thinking
    if not thinking.tokens:
        if config.evaluation.thinking:
            raise UserError(
                "evaluation.thinking: an agent without thinking.tokens has no cue after which it"
                " would answer; leave it out"
            )
        return
    if config.model.source == "tabular":
        raise UserError("thinking.tokens: a tabular policy has no words to think in")
    if config.ppo.level == "token":
        raise UserError("thinking.tokens: needs ppo.level outcome")
    if config.prompt.thinking == "off":
        raise UserError("prompt.thinking: off leaves no room for thinking.tokens; leave one out")
    if thinking.thoughts == 1 and thinking.baseline != "value":
        raise UserError(
            f"thinking.baseline: {thinking.baseline} compares a prompt's thoughts and there is one;"
            " raise thinking.thoughts or set it to value"
        )
    for key in ("cue", "stop"):
        if getattr(thinking, key) == "":
            raise UserError(f"thinking.{key}: needs at least one token")


def _check_anchor(config: Config) -> None:
    if config.anchor.coef and config.model.source == "tabular":
        raise UserError("anchor.coef: a tabular policy has no words of its own to be kept at")


def _check_distil(config: Config) -> None:
    asked = config.distil.persona != "none"
    if config.objective != "distil":
        if asked:
            raise UserError("distil.persona: needs objective distil")
        return
    if not asked:
        raise UserError("distil.persona: objective distil needs one, behind which the base teaches")
    if config.model.source == "tabular":
        raise UserError("objective: distil needs a model; a tabular policy reads no persona")
    if config.thinking.tokens:
        raise UserError("objective: distil needs thinking.tokens 0")
    if config.ppo.level != "outcome" or config.ppo.minibatches != 1:
        raise UserError("objective: distil needs ppo.level outcome and ppo.minibatches 1")
    if config.reward.exploitability:
        raise UserError("reward.exploitability: has no effect with objective distil; leave it out")
