"""The paper's random streams: numpy generators, drawn in the order its code draws.

A master seed spawns six children: symbols, PPO seed, remembered rounds, the label orders of the
opening sentence and of the format line, and the random opponent. With them the remembered rounds,
label orders and the random opponent's moves are those of arXiv 2410.01639's code, draw for draw.
"""

import numpy as np

from jaxmoral.world.rollout import Draws

_CHILDREN = ("symbols", "ppo", "memory", "opening", "format", "opponent")  # in the seed's order


class Streams:
    """The streams of one run, which go on from call to call."""

    def __init__(self, seed: int):
        children = np.random.SeedSequence(seed).spawn(len(_CHILDREN))
        self._streams = {
            name: np.random.default_rng(child)
            for name, child in zip(_CHILDREN, children, strict=True)
        }

    def draw(
        self,
        num_episodes: int,
        num_rounds: int,
        *,
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
            own[episode] = self._toss("memory")
            other[episode] = self._toss("memory") if remembered is None else remembered
            for turn in range(num_rounds):
                for player in range(num_players):
                    opening, reply = self._shuffle("opening"), self._shuffle("format")
                    order[player, turn, episode] = 2 * opening + reply
                if coin:
                    coins[turn, episode] = self._toss("opponent")
        return Draws(own=own, other=other, order=order, coin=coins)

    def _toss(self, stream: str) -> int:
        """One of two things."""
        return self._streams[stream].choice([0, 1], 1).item()

    def _shuffle(self, stream: str) -> int:
        """Which of two shuffled things comes first."""
        pair = [0, 1]
        self._streams[stream].shuffle(pair)
        return pair[0]
