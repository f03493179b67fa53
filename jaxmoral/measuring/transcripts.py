"""Whole episodes in words: what each side was shown, what it answered and how surely, what it got.

Agents answer by their exact policy tables, of which an answer is a draw; machines move by theirs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.measuring.aloud import think_aloud
from jaxmoral.world.games import Game
from jaxmoral.world.machines import Opponent
from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS, OUTCOMES
from jaxmoral.world.pairs import Structure, agent_player, machine_player

EPISODES = "episodes*.jsonl"  # the files in a run folder that a report shows


class Side(NamedTuple):
    """One of the two players of a game, which it sees as its first player.

    Attributes:
      name: in the transcript.
      structure: how it moves on.
      outcomes: `[num_states, num_orders, num_thoughts, num_outcomes]` probabilities; who does not
        think has one thought.
      opening: `[own moves]` probabilities of its first remembered move.
      prompts: `[num_states][num_orders]` texts; empty for a machine.
      thoughts: `[num_states][num_orders][num_thoughts]` texts; empty for who does not think.
      labels: what it calls C and D.
    """

    name: str
    structure: Structure
    outcomes: np.ndarray
    opening: np.ndarray
    prompts: Sequence[Sequence[str]] = ()
    thoughts: Sequence[Sequence[Sequence[str]]] = ()
    labels: tuple[str, str] = ("C", "D")


def agent_side(name: str, trained: TrainedAgent, game: Game, *, seed: int = 0) -> Side:
    """A trained agent in a game, which it sees as its first player.

    Args:
      name: in the transcript.
      trained: the agent.
      game: as it sees it.
      seed: of its thoughts, if it thinks.
    """
    agent = trained.agent
    condition = Condition(game, agent.presentation)
    memory = agent.presentation.remembers(game)
    spoken = think_aloud(agent, condition, trained.trainable, jax.random.key(seed))
    table = np.exp(np.asarray(spoken.answers, np.float64))
    table = table.reshape(-1, NUM_ORDERS, *table.shape[1:])
    if not np.isfinite(table).all():
        raise UserError(f"{name}: its policy is not finite; its training diverged")
    shown = np.minimum(memory.shown, len(table) - 1)
    by_state = lambda rows: np.array(rows, object).reshape(*table.shape[:2], -1)[shown].tolist()
    texts = by_state(agent.prompter.texts(condition))
    return Side(
        name,
        agent_player(memory, table.mean((1, 2))).structure,
        (table / table.sum(-1, keepdims=True))[shown],
        np.array([0.5, 0.5]),
        [[text for (text,) in orders] for orders in texts],
        () if spoken.thoughts is None else by_state(spoken.thoughts),
        agent.presentation.labels,
    )


def machine_side(name: str, opponent: Opponent) -> Side:
    """A strategy, which needs no words."""
    player = machine_player(opponent)
    return Side(name, player.structure, player.outcomes[:, None, None], player.opening)


def play_episode(
    sides: tuple[Side, Side],
    tables: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    *,
    num_rounds: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    """One episode between two sides.

    Args:
      sides: who plays.
      tables: each side's rewards by name, from `reward_table` in the game as that side sees it.
      num_rounds: that are played, after those remembered.
      random: of all draws.

    Returns:
      `{"players": names, "remembered": [[first's move, second's move], ...], "rounds": [{"players":
      [{"prompt", "answer", "move", "probabilities": {"C", "D", "illegal"}, "rewards"}, ...]},
      ...]}`. An illegal answer counts as the last legal move, C before any, which is "move". Who
      thinks also has a "thought", after which the probabilities are.
    """
    states = [side.structure.start for side in sides]
    previous: list[int] | None = None
    remembered = []
    for index in range(max(side.structure.tosses for side in sides)):
        previous = [
            _remembered(side, state, index, random)
            for side, state in zip(sides, states, strict=True)
        ]
        remembered.append(["CD"[move] for move in previous])
        states = _after(sides, states, previous)
    rounds = []
    for _ in range(num_rounds):
        answers = [_answer(side, state, random) for side, state in zip(sides, states, strict=True)]
        moves = [
            int(side.structure.effective[state, answer["outcome"]])
            for side, state, answer in zip(sides, states, answers, strict=True)
        ]
        for own, answer in enumerate(answers):
            before = 4 if previous is None else 2 * previous[own] + previous[1 - own]
            cell = before, answer.pop("outcome"), moves[1 - own]
            answer["move"] = "CD"[moves[own]]
            answer["rewards"] = {name: float(of[cell]) for name, of in tables[own].items()}
        rounds.append({"players": answers})
        states, previous = _after(sides, states, moves), moves
    return {
        "players": [side.name for side in sides],
        "remembered": remembered,
        "rounds": rounds,
    }


def _remembered(side: Side, state: int, index: int, random: np.random.Generator) -> int:
    """A move in a round that is only remembered: a coin's of an agent, a machine's own."""
    structure = side.structure
    if structure.tosses or index == 0:
        return int(random.choice(2, p=side.opening))
    outcome = random.choice(side.outcomes.shape[-1], p=side.outcomes[state, 0, 0])
    return int(structure.effective[state, outcome])


def _after(sides: Sequence[Side], states: Sequence[int], moves: Sequence[int]) -> list[int]:
    return [
        int(side.structure.next_state[state, moves[own], moves[1 - own]])
        for own, (side, state) in enumerate(zip(sides, states, strict=True))
    ]


def _answer(side: Side, state: int, random: np.random.Generator) -> dict[str, Any]:
    order, thought = (int(random.integers(size)) for size in side.outcomes.shape[1:3])
    probabilities = side.outcomes[state, order, thought]
    outcome = int(random.choice(len(probabilities), p=probabilities))
    thinks = {"thought": side.thoughts[state][order][thought]} if side.thoughts else {}
    return {
        "prompt": side.prompts[state][order] if side.prompts else None,
        **thinks,
        "answer": None if outcome == ILLEGAL else side.labels[outcome],
        "outcome": outcome,
        "probabilities": dict(zip(OUTCOMES, map(float, probabilities), strict=False)),
    }


def in_words(episode: Mapping[str, Any], *, prompts: bool = True) -> str:
    """An episode as text for a terminal."""
    names = episode["players"]
    lines = [f"{names[0]} against {names[1]}"]
    for own, other in episode["remembered"]:
        lines.append(f"remembered   {names[0]} {own}, {names[1]} {other}")
    for number, played in enumerate(episode["rounds"], 1):
        lines.append(f"round {number}")
        for name, turn in zip(names, played["players"], strict=True):
            if prompts and turn["prompt"] is not None:
                lines += [f"    | {line}" for line in turn["prompt"].splitlines()]
            if "thought" in turn:
                lines.append(f"  {name} thinks: {' '.join(turn['thought'].split())}")
            said = "no label" if turn["answer"] is None else f"{turn['answer']!r} ({turn['move']})"
            sure = ", ".join(
                f"P({key}) {share:.3f}" for key, share in turn["probabilities"].items()
            )
            earned = ", ".join(f"{key} {value:g}" for key, value in turn["rewards"].items())
            lines.append(f"  {name}: {said}; {sure}; {earned}")
    return "\n".join(lines)


def write_episodes(episodes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line of JSON an episode."""
    with replacing(path) as scratch:
        scratch.write_text(
            "".join(f"{json.dumps(episode)}\n" for episode in episodes), encoding="utf-8"
        )


def read_episodes(path: Path) -> list[str]:
    """The episodes of such a file as texts, as by `in_words`.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [in_words(json.loads(line)) for line in lines]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds something else than episodes ({error})") from None
