"""What a run, or several at once, are: a few lines for people, every value that occurs named."""

from collections.abc import Callable, Sequence

from jaxmoral.config import Config
from jaxmoral.learning.mixture import num_choices
from jaxmoral.learning.whom import trained_against


def summary(members: Sequence[Config]) -> dict[str, str]:
    """What is played, rewarded, shown and done, by a word for each.

    Args:
      members: pinned configurations of runs, or of a population's members.
    """

    def told(text: Callable[[Config], str]) -> str:
        found = list(dict.fromkeys(value for config in members if (value := text(config))))
        return ("; " if any(", " in value for value in found) else ", ").join(found)

    parts = {
        "game": [f"{told(_game)} against {told(trained_against)}", told(_noise)],
        "objective": [told(_objective)],
        "reward": [told(_reward)],
        "points": [told(_points)],
        "shown": [
            told(_memory),
            f"labels {told(lambda c: '/'.join(c.prompt.labels))}",
            f"wording {told(lambda c: _first_words(c.prompt.wording))}",
            told(_mixture),
            told(lambda c: _unless(c.prompt.persona, "none", "persona")),
            told(lambda c: _unless(c.prompt.table_order, "original", "table order")),
        ],
        "training": [told(_updates), told(_estimator), told(_thinking)],
        "seeds": [told(lambda c: str(c.seed))],
    }
    texts = {name: "; ".join(filter(None, lines)) for name, lines in parts.items()}
    return {name: text for name, text in texts.items() if text}


def summary_lines(members: Sequence[Config]) -> list[str]:
    """The same as lines for a terminal."""
    return [f"{name:11}{text}" for name, text in summary(members).items()]


def _game(config: Config) -> str:
    env = config.env
    if not env.payoff_draws:
        return env.game
    low, high = env.payoff_range
    return f"{env.game} ({env.payoff_draws} draws of payoffs from {low} to {high} an update)"


def _mixture(config: Config) -> str:
    total = num_choices(config)
    return f"{config.mixture.conditions} of {total:,} conditions an update" if total > 1 else ""


def _noise(config: Config) -> str:
    return f"the hand trembles in {100 * config.env.noise:g}% of moves" if config.env.noise else ""


def _objective(config: Config) -> str:
    if config.objective == "reward":
        return ""
    persona = _first_words(config.distil.persona)
    return f"to do what the base does behind the persona {persona}; the reward is measured alone"


def _reward(config: Config) -> str:
    reward = config.reward
    if reward.then is None:
        return reward.name
    when = "step by step" if reward.transition == "linear" else f"after update {reward.switch_at}"
    return f"{reward.name}, then {reward.then} ({when})"


def _points(config: Config) -> str:
    reward = config.reward
    taken = f", minus {reward.exploitability:g} x exploitability" if reward.exploitability else ""
    scale = ", legal rounds from 0 to 1" if reward.normalise else ""
    return f"xi {reward.xi:g}, illegal {reward.illegal:g}{scale}{taken}"


def _thinking(config: Config) -> str:
    thinking = config.thinking
    if not thinking.tokens:
        return ""
    return f"{thinking.thoughts} thoughts of up to {thinking.tokens} tokens"


def _memory(config: Config) -> str:
    rounds = config.env.memory
    blank = " (none at first)" if config.env.blank_start else ""
    return f"{rounds} remembered {'round' if rounds == 1 else 'rounds'}{blank}"


def _updates(config: Config) -> str:
    env = config.env
    return f"{config.updates} updates of {env.episodes:,} episodes x {env.rounds} rounds"


def _estimator(config: Config) -> str:
    ppo = config.ppo
    if ppo.estimator == "exact":
        return "exact (their expectation)"
    return "sampled" if ppo.level == "outcome" else "sampled token by token"


def _unless(value: str, usual: str, name: str) -> str:
    return "" if value == usual else f"{name} {_first_words(value)}"


def _first_words(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 40 else f"{words[:40]}..."
