"""The command `python -m jaxmoral.chat`: play rounds against a trained agent and ask it why."""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError, check_seed, run_command
from jaxmoral.language.prompts import QUESTIONS, Condition
from jaxmoral.learning.bucket import local_path
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.plugins import add_plugins, name_plugins
from jaxmoral.learning.run_folder import check_alone
from jaxmoral.world.memory import ILLEGAL, NUM_ORDERS, History, Memory

if TYPE_CHECKING:
    from jaxmoral.learning.trained import TrainedAgent

_THOUGHTS = 2**31  # folded into the key, whose other uses have small numbers


class Round(NamedTuple):
    """What happened: the prompt's index, the agent's move (2 is illegal), both players' points.

    `probabilities` are those of the agent's C, D and illegal answer to that prompt, after the
    thought of this number if it thinks.
    """

    prompt: int
    agents_move: int
    agents_points: float
    users_points: float
    probabilities: tuple[float, ...]
    thought: int


class Match:
    """A user against an agent; the agent remembers rounds as in training."""

    def __init__(self, config: Config, memory: Memory, log_probs: np.ndarray, seed: int):
        """Starts from remembered rounds drawn at random, as episodes do.

        Args:
          config: of the run.
          memory: of the agent.
          log_probs: `[num_prompts, 3]` of the agent, or `[num_prompts, num_thoughts, 3]` after each
            of its thoughts.
          seed: of the agent's choices.
        """
        self.game = training_game(config)
        self._illegal = config.reward.illegal
        self.labels = config.prompt.labels
        self.memory = memory
        probs = np.exp(np.asarray(log_probs, np.float64))
        self._probs = probs.reshape(len(probs), -1, 3)
        self._random = np.random.default_rng(seed)
        self._state = memory.start
        for _ in range(memory.opening):
            own, other = self._random.integers(0, 2, 2)
            self._state = memory.next_state[self._state, own, other]

    @property
    def history(self) -> History:
        """What the agent remembers."""
        return self.memory.histories[self.memory.shown[self._state]]

    def play(self, users_move: int) -> Round:
        """Plays one simultaneous round.

        An illegal answer pays the agent `reward.illegal`; for the user its last legal move stands.
        """
        shown = int(self.memory.shown[self._state])
        prompt = shown * NUM_ORDERS + int(self._random.integers(NUM_ORDERS))
        num_thoughts, thought = self._probs.shape[1], 0
        if num_thoughts > 1:
            thought = int(self._random.integers(num_thoughts))
        probs = self._probs[prompt, thought] / self._probs[prompt, thought].sum()
        agents_move = int(self._random.choice(3, p=probs))
        counted = self.memory.effective[self._state, agents_move]
        agents_points, users_points = self.game.payoffs[:, counted, users_move].tolist()
        if agents_move == ILLEGAL:
            agents_points = self._illegal
        self._state = self.memory.next_state[self._state, counted, users_move]
        return Round(
            prompt,
            agents_move,
            agents_points,
            users_points,
            tuple(probs.tolist()),
            thought,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.chat", description="Play against a trained agent and question it."
    )
    parser.add_argument("--run", type=local_path, required=True, help="a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the agent's choices and words")
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _chat(arguments.run, arguments.seed, arguments.plugin))


def _chat(folder: Path, seed: int, plugins: list[str]) -> None:
    check_seed(seed)
    name_plugins(plugins)
    check_alone(folder)
    from jaxmoral.learning.saved import load_trained  # slow to import
    from jaxmoral.models.load import use_compilation_cache

    use_compilation_cache()
    run = load_trained(folder)
    players = training_game(run.config).num_players
    if players > 2:
        raise UserError(f"{folder} holds an agent for {players} players; you are one")
    talk = Talk(run, seed)
    print(talk.greeting())
    while True:
        try:
            word = input("> ").strip()
        except EOFError:
            return
        reply = talk.reply(word)
        if reply is None:
            return
        print(reply)


class Talk:
    """A match in words: what a user types, and what is said to that."""

    def __init__(self, run: "TrainedAgent", seed: int):
        """Starts a match against a trained agent; the seed is of its choices and words."""
        from jaxmoral.measuring.aloud import think_aloud  # slow to import

        self._run, agent = run, run.agent
        shown = Condition(training_game(run.config), agent.presentation)
        memory = agent.presentation.remembers(shown.game)
        key = jax.random.key(seed)
        self._spoken = think_aloud(agent, shown, run.trainable, jax.random.fold_in(key, _THOUGHTS))
        self._match = Match(run.config, memory, self._spoken.answers, seed)
        self._texts = agent.prompter.texts(shown)
        self._keys = map(partial(jax.random.fold_in, key), itertools.count())
        labels = self._match.labels
        self._moves = {"c": 0, "d": 1, labels[0]: 0, labels[1]: 1}
        self._words = ", ".join([*labels, "c", "d", *QUESTIONS, "prompt"])
        self._last: Round | None = None

    def greeting(self) -> str:
        """What is played, what may be typed, and what both remember."""
        labels = self._match.labels
        lines = [f"{self._match.game.title}; you are A. Type {self._words} or quit."]
        for own, other in self._match.history:
            lines.append(f"Remembered round: agent {labels[own]}, you {labels[other]}.")
        return "\n".join(lines)

    def reply(self, word: str) -> str | None:
        """What is said to a move, a question, "prompt" or anything else; None to "quit"."""
        if word in self._moves:
            return self._play(self._moves[word])
        word = word.lower().rstrip("?")
        if word in self._moves:
            return self._play(self._moves[word])
        if word == "quit":
            return None
        if word not in (*QUESTIONS, "prompt"):
            return f"Type {self._words} or quit."
        if self._last is None:
            return "Play a round first."
        if word == "prompt":
            return self._texts[self._last.prompt]
        if self._run.agent.model is None:
            return "This agent is a table of probabilities; it has no words."
        return self._explain(QUESTIONS[word], self._last, next(self._keys))

    def _play(self, move: int) -> str:
        last = self._last = self._match.play(move)
        said = (*self._match.labels, "something that is no action")[last.agents_move]
        sure = "C {:.1%}, D {:.1%}, illegal {:.1%}".format(*last.probabilities)
        told = (
            f"agent: {said}. Points: you {last.users_points:g}, agent {last.agents_points:g}."
            f" It answers {sure}."
        )
        if self._spoken.thoughts is None:
            return told
        thought = self._spoken.thoughts[last.prompt][last.thought]
        return f"agent thinks: {' '.join(thought.split())}\n{told}"

    def _explain(self, question: str, last: Round, key: jax.Array) -> str:
        """What the agent says about its last answer, at most 60 sampled tokens."""
        from jaxmoral.learning.speller import Speller
        from jaxmoral.measuring.questions import follow_up
        from jaxmoral.models.generate import Sampling, generate

        run, agent = self._run, self._run.agent
        model, lora = agent.model, agent.lora
        assert model is not None
        assert lora is not None
        settings = run.config.prompt
        speller = Speller(model, settings.template, switch=settings.thinking)
        text, answer = self._texts[last.prompt], (*self._match.labels, "")[last.agents_move]
        before = self._spoken.before[last.prompt][last.thought]
        ids = follow_up(speller, text, answer, question, before=before)
        adapter = run.trainable["adapter"]
        (said,) = generate(model, [ids], 60, key, Sampling(top_p=0.9), adapter, lora)
        return speller.tokenizer.decode(said).strip()


if __name__ == "__main__":
    main()
