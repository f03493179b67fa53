"""The paper's random numbers, drawn as its program draws them."""

from collections.abc import Callable

from jaxmoral.config import Config
from jaxmoral.learning.lookup import num_learners
from jaxmoral.world.rollout import Draws
from jaxmoral.world.streams import Streams


def paper_draws(config: Config) -> Callable[[int], Draws | None]:
    """The paper's random numbers of each update, or None for JAX's own.

    Updates are asked for in ascending order; those skipped (made by an earlier session) are drawn
    and thrown away, so that a resumed run goes on in the same stream.
    """
    env = config.env
    if env.streams == "jax":
        return lambda update: None
    streams, made = Streams(config.seed), -1
    newest: Draws | None = None
    num_players = num_learners(config)
    remembered = {"always-cooperate": 0, "always-defect": 1}.get(env.opponent)

    def draw(update: int) -> Draws | None:
        nonlocal made, newest
        while made < update:
            newest = streams.draw(
                env.episodes,
                env.rounds,
                num_players=num_players,
                remembered=remembered,
                coin=env.opponent == "random",
            )
            made += 1
        return newest

    return draw
