"""Whole episodes in words: what each side was shown, what it answered and how surely, what it got.

Agents answer by their exact policy tables, of which an answer is a draw; machines move by theirs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import policy_table
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.world.games import Game
from jaxmoral.world.machines import Opponent
from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS
from jaxmoral.world.pairs import Structure, agent_player, machine_player

OUTCOMES = ("C", "D", "illegal")


class Side(NamedTuple):
    """One of the two players of a game, which it sees as its first player.

    Attributes:
      name: in the transcript.
      structure: how it moves on.
      outcomes: `[num_states, num_orders, num_outcomes]` probabilities.
      opening: `[own moves]` probabilities of its first remembered move.
      prompts: `[num_states][num_orders]` texts; empty for a machine.
      labels: what it calls C and D.
    """

    name: str
    structure: Structure
    outcomes: np.ndarray
    opening: np.ndarray
    prompts: Sequence[Sequence[str]] = ()
    labels: tuple[str, str] = ("C", "D")


def agent_side(name: str, trained: TrainedAgent, game: Game) -> Side:
    """A trained agent in a game, which it sees as its first player."""
    presentation = trained.agent.presentation
    condition = Condition(game, presentation)
    memory = presentation.remembers(game)
    log_probs = policy_table(trained.agent, condition, trained.trainable).log_probs
    table = np.exp(np.asarray(log_probs, np.float64)).reshape(-1, NUM_ORDERS, 3)
    if not np.isfinite(table).all():
        raise UserError(f"{name}: its policy is not finite; its training diverged")
    shown = np.minimum(memory.shown, len(table) - 1)
    texts = np.array(trained.agent.prompter.texts(condition), object).reshape(-1, NUM_ORDERS)
    return Side(
        name,
        agent_player(memory, table.mean(1)).structure,
        (table / table.sum(-1, keepdims=True))[shown],
        np.array([0.5, 0.5]),
        texts[shown].tolist(),
        presentation.labels,
    )


def machine_side(name: str, opponent: Opponent) -> Side:
    """A strategy, which needs no words."""
    player = machine_player(opponent)
    return Side(name, player.structure, player.outcomes[:, None], player.opening)


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
      [{"prompt", "order", "answer", "move", "probabilities": {"C", "D", "illegal"}, "rewards"},
      ...]}, ...]}`; an illegal answer counts as the last legal move, C before any, which is "move".
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
    outcome = random.choice(side.outcomes.shape[-1], p=side.outcomes[state, 0])
    return int(structure.effective[state, outcome])


def _after(sides: Sequence[Side], states: Sequence[int], moves: Sequence[int]) -> list[int]:
    return [
        int(side.structure.next_state[state, moves[own], moves[1 - own]])
        for own, (side, state) in enumerate(zip(sides, states, strict=True))
    ]


def _answer(side: Side, state: int, random: np.random.Generator) -> dict[str, Any]:
    order = int(random.integers(side.outcomes.shape[1]))
    probabilities = side.outcomes[state, order]
    outcome = int(random.choice(len(probabilities), p=probabilities))
    return {
        "prompt": side.prompts[state][order] if side.prompts else None,
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
            said = "no label" if turn["answer"] is None else f"{turn['answer']!r} ({turn['move']})"
            sure = ", ".join(
                f"P({key}) {share:.3f}" for key, share in turn["probabilities"].items()
            )
            earned = ", ".join(f"{key} {value:g}" for key, value in turn["rewards"].items())
            lines.append(f"  {name}: {said}; {sure}; {earned}")
    return "\n".join(lines)


def write_episodes(episodes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line of JSON an episode."""
    path.write_text("".join(f"{json.dumps(episode)}\n" for episode in episodes), encoding="utf-8")
