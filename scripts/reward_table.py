"""Trains the paper's rewards with several seeds and the same settings; prints a table of them.

The table is the one in docs/paper.md.

    python scripts/reward_table.py [--seeds 0,1,2] [--output table.md] [--picture types.png]
        [--any.key value ...]

Each row compares a trained policy with the reward's one-step optimum, both measured exactly
against the training opponent.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxmoral
from jaxmoral import config as configs
from jaxmoral.errors import run_command
from jaxmoral.learning.environments import environment
from jaxmoral.measuring.runs import Run
from jaxmoral.models.load import use_compilation_cache
from jaxmoral.reporting.canvas import save
from jaxmoral.reporting.figures import training_types
from jaxmoral.world.chain import against, visits
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rewards import PAPER_REWARDS
from jaxmoral.world.rollout import Environment


def one_step_values(arena: Environment) -> np.ndarray:
    """Expected reward of C and D after each remembered round, `[2N, 2]`.

    The opponent is in the state that the remembered round put it in, as in a first round.
    """
    opponent, rewards = arena.opponent, np.asarray(arena.rewards)[0]
    assert opponent is not None
    num_moves = rewards.shape[-1]
    own, other = np.divmod(np.arange(2 * num_moves), num_moves)
    state = np.asarray(opponent.next_state)[opponent.start, other, own]
    moves = np.asarray(opponent.moves)[state]
    return (rewards[:-1, :2] * moves[:, None]).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, help="where the table goes besides the terminal")
    parser.add_argument("--picture", type=Path, help="action types of each reward's first seed")
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    use_compilation_cache()
    lines = [
        "| reward | seed | P(C) after CC, CD, DC, DD | legal | reward | optimum | share |"
        " at optimum |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    histories: dict[str, list[Run]] = {}
    for reward in PAPER_REWARDS:
        for seed in arguments.seeds.split(","):
            config = configs.load(None, [*flags, "--reward.name", reward, "--seed", seed])
            trained = jaxmoral.train_agent(config, say=lambda line: None)
            run = Run(Path(), trained.config, trained.history, None, [])
            histories.setdefault(reward, [run])
            lines.append(row(trained))
            print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")
    if arguments.picture:
        save(training_types(histories), arguments.picture)


def row(trained: jaxmoral.TrainedAgent) -> str:
    """Describes a trained agent as a row of a Markdown table."""
    config = trained.config
    reward = config.reward.name
    evaluation = jaxmoral.evaluate_agent(trained, [config.env.game], [config.env.opponent])
    tuned = evaluation["suites"]["trained"][config.env.game]["policies"]["tuned"]
    exact = tuned["opponents"][config.env.opponent]["exact"]
    policy = np.array([list(cell.values()) for cell in tuned["remembered"].values()])
    legal = 1 - exact["outcomes"]["illegal"]

    arena = environment(config)
    values = one_step_values(arena)
    defects = values.argmax(-1)
    memory = make_memory(num_moves=arena.rewards.shape[-1])
    assert arena.opponent is not None
    shares = visits(
        against(memory, arena.opponent), jnp.eye(3)[defects], num_rounds=config.env.rounds
    )
    best, worst = float((shares * arena.rewards).sum()), float(np.min(arena.rewards))
    mean = exact["rewards"][reward]
    share = mean / best if best > 0 else (mean - worst) / (best - worst)
    judged = np.flatnonzero(values[:, 0] != values[:, 1])  # the rest is all the same to the reward
    at_optimum = all(policy[cell, defects[cell]] > 0.9 for cell in judged)
    cells = ", ".join(f"{p:.3f}" for p in policy[:, 0])
    return (
        f"| {reward} | {config.seed} | {cells} | {legal:.2%} | {mean:.3f} | {best:.3f} |"
        f" {share:.1%} | {'yes' if at_optimum else 'NO'} |"
    )


if __name__ == "__main__":
    main()
