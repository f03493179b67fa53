"""The command `python -m jaxmoral.play`: whole episodes of an agent against another, in words."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError, check_output, check_seed, check_whole, run_command
from jaxmoral.learning.bucket import local_path, not_in_bucket
from jaxmoral.learning.lookup import find_games, find_opponent
from jaxmoral.learning.plugins import add_plugins, name_plugins, names_kept
from jaxmoral.learning.run_folder import check_alone, is_run
from jaxmoral.world.games import Game, mirror
from jaxmoral.world.opponents import OPPONENTS
from jaxmoral.world.rewards import get_reward, reward_table

if TYPE_CHECKING:
    from jaxmoral.measuring.transcripts import Side

MOST = 10**6  # episodes, and rounds of one


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.play",
        description="Plays episodes between a trained agent and another agent or a strategy, and"
        " prints what each was shown, answered, how surely, and what it got.",
    )
    parser.add_argument("--run", type=local_path, required=True, help="a run folder")
    parser.add_argument(
        "--against",
        type=not_in_bucket,
        default="tit-for-tat",
        help=f"another run folder, or a strategy: {', '.join(OPPONENTS)}, 'random(0.3)', ..."
        " (default: tit-for-tat)",
    )
    parser.add_argument("--game", help="a game's name; that of training without it")
    parser.add_argument("--episodes", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="of an episode (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--no-prompts", action="store_true", help="leave the prompts out")
    parser.add_argument("--output", type=local_path, help="a file: an episode a line, as JSON")
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    name_plugins(arguments.plugin)
    check_seed(arguments.seed)
    for name in ("episodes", "rounds"):
        check_whole(f"--{name}", getattr(arguments, name), 1, MOST)
    output = arguments.output
    if output is not None:
        check_output(output)
        if output.exists():
            from jaxmoral.measuring.transcripts import read_episodes  # slow to import

            read_episodes(output)  # nothing else is replaced
    config = check_alone(arguments.run)
    from jaxmoral.learning.resolve import resolve

    config = resolve(config)
    game, *others = find_games(config, [arguments.game or config.env.game])
    if others:
        raise UserError(f"--game: {arguments.game} is a set of games; name one of them")
    if game.num_players > 2:
        raise UserError(f"--game: {game.name} has {game.num_players} players; episodes have two")
    from jaxmoral.measuring.transcripts import in_words, play_episode, write_episodes

    sides = _sides(arguments, config, game)
    tables = _tables(config, game), _tables(config, mirror(game))
    random = np.random.default_rng(arguments.seed)
    episodes = []
    for _ in range(arguments.episodes):
        episode = play_episode(sides, tables, num_rounds=arguments.rounds, random=random)
        episodes.append({"game": game.name, "seed": arguments.seed} | episode)
        print(in_words(episode, prompts=not arguments.no_prompts), end="\n\n")
    if output is not None:
        write_episodes(episodes, output)
        print(f"wrote {output}")


def _sides(arguments: argparse.Namespace, config: Config, game: Game) -> "tuple[Side, Side]":
    """The agent and whom it meets; what can be refused is, before a model is read."""
    from jaxmoral.learning.saved import load_trained
    from jaxmoral.measuring.transcripts import agent_side, machine_side
    from jaxmoral.models.load import use_compilation_cache

    other = Path(arguments.against)
    machine = None
    if not is_run(other):
        if other.is_dir() and arguments.against not in {*OPPONENTS, *config.opponents}:
            check_alone(other)  # says what the folder is
        machine = machine_side(arguments.against, find_opponent(config, arguments.against, game))
    use_compilation_cache()
    ours = agent_side(arguments.run.name, load_trained(arguments.run), game, seed=arguments.seed)
    if machine is not None:
        return ours, machine
    with names_kept():  # what is shown is by the first run's rewards
        theirs = load_trained(other)
    return ours, agent_side(other.name, theirs, mirror(game), seed=arguments.seed)


def _tables(config: Config, game: Game) -> dict[str, np.ndarray]:
    """The points, what moral regret is measured by, and what the run was trained with."""
    from jaxmoral.measuring.measures import REGRETS

    settings = config.reward
    names = dict.fromkeys(["game", *REGRETS, settings.name, settings.then])
    return {
        name: reward_table(game, get_reward(name), settings.xi, settings.illegal)
        for name in names
        if name is not None
    }


if __name__ == "__main__":
    main()
