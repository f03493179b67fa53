"""A population: runs that differ only in what may vary within one compiled step, trained together.

Their states, environments and settings are stacked on a leading axis over one frozen base. A run
alone is no population: nothing of it has that axis.
"""

from collections.abc import Sequence, Set
from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config, differences
from jaxmoral.config.states import Resolved
from jaxmoral.devices.mesh import Layout, map_spread
from jaxmoral.errors import UserError
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import LEARNER, training_game
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.mixture import label_pairs, num_choices
from jaxmoral.learning.ppo import Update
from jaxmoral.learning.state import ADJUSTABLE, INITIAL, TrainState, UpdateInputs
from jaxmoral.world.machines import stack
from jaxmoral.world.rollout import Environment

Members = Sequence[tuple[Resolved, Agent]]

# What may differ within a population: whole groups, and keys.
VARYING_GROUPS = ("reward.", "evaluation.")
VARYING = (
    "seed",
    "env.game",
    "mixture.labels",  # which the seed may have drawn
    "env.opponent",
    "env.opponent_illegal",
    "env.noise",
    *(f"prompt.{name}" for name in ("labels", "random_labels", "wording", "persona")),
    "prompt.table_order",
    "anchor.coef",
    *(f"ppo.{name}" for name in (*ADJUSTABLE, *INITIAL)),
)


# What a part of the mixture takes the place of.
_REPLACED = {
    "games": "env.game",
    "labels": "prompt.labels",
    "wordings": "prompt.wording",
    "personas": "prompt.persona",
    "table_orders": "prompt.table_order",
    "opponents": "env.opponent",
}


def check_asked(members: Sequence[Config]) -> None:
    """Raises UserError if members, as they were asked for, differ in what has no effect."""
    first = members[0]
    for other in members[1:]:
        changed = differences(first, other)
        for part, key in _REPLACED.items():
            mixed = f"mixture.{part}"
            if getattr(first.mixture, part) is not None and key in changed and mixed not in changed:
                raise UserError(
                    f"{key}: members that differ in it would be alike, as {mixed} takes its place;"
                    " leave one of the two out"
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


def prompts_differ(members: Members) -> bool:
    """Whether members see different prompts, now or in a later update."""
    seen = {
        (
            training_game(config).name,
            agent.presentation,
            tuple(label_pairs(config) or ()),  # which the seed may have drawn
            config.seed if config.env.payoff_draws or num_choices(config) > 1 else None,
        )
        for config, agent in members
    }
    return len(seen) > 1


def per_member(members: Members) -> frozenset[str]:
    """The names of an update's inputs that have a leading axis of members."""
    if len(members) == 1:
        return frozenset()
    own = {"key", "environment", "settings", "draws", "anchor"}
    return frozenset(own | {"prompts", "reference", "teacher"} if prompts_differ(members) else own)


def state_prefix(update: Any, players: Any) -> TrainState:
    """What stands for a state's parts, as axes do: one thing for the number of updates, which
    members share, and one for the rest.
    """
    return TrainState(update, players)


def stack_members(trees: Sequence[Any]) -> Any:
    """The members' arrays on a leading axis; those of a run alone as they are."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: np.stack(x), *trees)


def stack_environments(each: Sequence[Environment]) -> Environment:
    """The members' environments, as by `stack_members`."""
    if len(each) == 1:
        return each[0]
    if any(own.noise is not None for own in each):
        silent = np.zeros((), np.float32)
        each = [own._replace(noise=silent if own.noise is None else own.noise) for own in each]
    machines = [own.opponent for own in each if own.opponent is not None]
    stacked = stack_members([own._replace(opponent=None) for own in each])
    return stacked._replace(opponent=stack(machines) if machines else None)


def member_state(state: TrainState, index: int) -> TrainState:
    """One member's part of a population's state."""
    return state._replace(players=jax.tree.map(lambda leaf: leaf[index], state.players))


def over_members(
    update: Update, varying: Set[str], *, layout: Layout | None = None, in_turns: bool = False
) -> Update:
    """An update of a whole population, given one member's.

    Args:
      update: of `ppo.make_update`.
      varying: from `per_member`.
      layout: what spreads the members.
      in_turns: whether members on the same place take turns instead of being computed at once.
    """

    def together(state: TrainState, inputs: UpdateInputs) -> tuple[TrainState, Metrics]:
        def update_member(xs):
            players, own = xs
            after, metrics = update(TrainState(state.update, players), inputs._replace(**own))
            return after.players, metrics

        xs = state.players, {name: getattr(inputs, name) for name in varying}
        if in_turns:
            players, metrics = map_spread(update_member, xs, layout)
        else:
            spread = None if layout is None else layout.lead_axes
            players, metrics = jax.vmap(update_member, spmd_axis_name=spread)(xs)
        return TrainState(state.update + 1, players), metrics

    return together
