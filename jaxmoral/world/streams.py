"""The paper's random streams: numpy generators, drawn in the order its code draws.

A master seed spawns six children: symbols, PPO seed, remembered rounds, the label orders of the
opening sentence and of the format line, and the random opponent. With them the remembered rounds,
label orders and the random opponent's moves are those of arXiv 2410.01639's code, draw for draw.
"""

import numpy as np

from jaxmoral.world.rollout import Draws


class Streams:
    """The streams of one run, which go on from call to call."""

    def __init__(self, seed: int):
        children = np.random.SeedSequence(seed).spawn(6)
        _, _, self._memory, self._opening, self._format, self._opponent = map(
            np.random.default_rng, children
        )

    def draw(
        self,
        num_episodes: int,
        num_rounds: int,
        num_players: int = 1,
        remembered: int | None = None,
        coin: bool = True,
    ) -> Draws:
        """The next episodes, one after the other.

        Args:
          num_episodes, num_rounds: how many, how long.
          num_players: agents that see prompts; in a round the first one's are made first.
          remembered: the opponent's remembered move if it is no matter of chance.
          coin: whether the opponent moves by chance.
        """
        own = np.zeros(num_episodes, np.int32)
        other = np.zeros(num_episodes, np.int32)
        order = np.zeros((num_players, num_rounds, num_episodes), np.int32)
        coins = np.zeros((num_rounds, num_episodes), np.int32)
        for episode in range(num_episodes):
            own[episode] = self._memory.choice([0, 1], 1).item()
            other[episode] = (
                self._memory.choice([0, 1], 1).item() if remembered is None else remembered
            )
            for turn in range(num_rounds):
                for player in range(num_players):
                    opening = _first_of_two(self._opening)
                    order[player, turn, episode] = 2 * opening + _first_of_two(self._format)
                if coin:
                    coins[turn, episode] = self._opponent.choice([0, 1], 1).item()
        return Draws(own, other, order, coins)


def _first_of_two(generator: np.random.Generator) -> int:
    """Which of two shuffled things comes first."""
    pair = [0, 1]
    generator.shuffle(pair)
    return pair[0]
