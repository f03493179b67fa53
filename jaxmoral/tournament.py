"""The command `python -m jaxmoral.tournament`: agents and strategies meet each other in every game.

Everything is exact: payoffs and moral rewards of each side in an episode and in the long run, the
most that anyone can get from each, and which of them would spread in a population.
"""

import argparse
import shlex
from pathlib import Path

from jaxmoral.errors import UserError, check_number, check_whole, choose, run_command, split_outside
from jaxmoral.learning.bucket import local_path, not_in_bucket
from jaxmoral.learning.plugins import add_plugins, name_plugins
from jaxmoral.learning.run_folder import is_population, is_run, member_names, read_config
from jaxmoral.world.games import GAMES, SETS, Game, choose_games, make_games
from jaxmoral.world.machines import Opponent
from jaxmoral.world.opponents import FAMILIES, OPPONENTS, make_opponents
from jaxmoral.world.rewards import REWARDS, get_reward

MAX_ROUNDS = 1_000_000  # one after the other; what is beyond is the long run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.tournament",
        description="Lets agents and strategies meet each other in every game, exactly.",
    )
    parser.add_argument(
        "agents",
        type=not_in_bucket,
        nargs="+",
        help="folders of runs, populations or PEFT adapters (shown the default prompts and labels),"
        f" or names of strategies: {', '.join(OPPONENTS)}, 'random(0.3)', ...",
    )
    parser.add_argument(
        "--output-dir",
        type=local_path,
        required=True,
        help="the folder that tournament.json goes to",
    )
    parser.add_argument(
        "--games",
        default="all",
        help=f"comma-separated: names, e.g. {', '.join(GAMES)}, 'donation(3,1)', or sets:"
        f" {', '.join(SETS)}; all, the default, is the paper's and the runs' own",
    )
    parser.add_argument(
        "--rewards",
        default="deontological,utilitarian",
        help=f"comma-separated: {', '.join(REWARDS)}, 'altruism(0.3)', ... (default:"
        " deontological,utilitarian)",
    )
    parser.add_argument(
        "--rounds", type=int, default=100, help="length of an episode, from 1 (default: 100)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="probability that anybody's move comes out as the other, 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--xi", type=float, default=3.0, help="deontological penalty in points (default: 3)"
    )
    parser.add_argument(
        "--illegal", type=float, default=-6.0, help="what illegal answers earn (default: -6)"
    )
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    name_plugins(arguments.plugin)
    check_whole("--rounds", arguments.rounds, 1, MAX_ROUNDS)
    noise = check_number("--noise", arguments.noise, 0.0, 1.0)
    for name in ("xi", "illegal"):
        check_number(f"--{name}", getattr(arguments, name))
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        raise UserError(f"--output-dir: {arguments.output_dir} is no folder")
    for name in arguments.agents:
        if "/" in name and not Path(name).exists():
            raise UserError(f"agents: there is no run, population or adapter in {name}")
    if not any(Path(name).exists() for name in arguments.agents):  # runs bring names of their own
        for name in arguments.agents:
            choose("agents: opponent", name.partition("(")[0], {**OPPONENTS, **FAMILIES})
    from jaxmoral.measuring.keeping import write_json  # slow to import, as the others
    from jaxmoral.measuring.tournaments import (
        FILE,
        check_same,
        hold,
        read_entrants,
        sources_of,
        standings,
    )
    from jaxmoral.models.load import use_compilation_cache

    games, strategies = _known(arguments)
    rewards = _split(arguments.rewards)
    for name in rewards:
        get_reward(name, "--rewards")
    sources = sources_of(arguments.agents)
    folders = {who: source for who, source in sources.items() if source is not None}
    settings = {
        "agents": list(sources),
        "sources": folders,
        "rounds": arguments.rounds,
        "xi": arguments.xi,
        "r_illegal": arguments.illegal,
        "rewards": rewards,
        "noise": noise,
    }
    path = arguments.output_dir / FILE
    held_before = path.is_file()
    if held_before:
        check_same(path, settings, games)
    use_compilation_cache()
    entrants = [
        one for name in arguments.agents for one in read_entrants(name, games, noise, strategies)
    ]
    for one in entrants:
        if one.name in folders:  # the newest checkpoint may be damaged, and another one be read
            folders[one.name]["update"] = one.update
    if held_before:
        check_same(path, settings, games)
    result = hold(entrants, games, rewards, arguments.rounds, arguments.xi, arguments.illegal)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(result | settings, path)
    print(standings(result))
    print(f"{'replaced the same tournament in' if held_before else 'wrote'} {path}")
    print(f"next: python -m jaxmoral.report {shlex.quote(str(arguments.output_dir))}")


def _members_in(folder: Path) -> list[str]:
    return member_names(folder) if is_population(folder) else []


def _known(arguments: argparse.Namespace) -> tuple[list[Game], dict[str, Opponent]]:
    """The games that are played, and the opponents that the runs bring along."""
    from jaxmoral.learning.resolve import resolve
    from jaxmoral.measuring.tournaments import together

    wanted = _split(arguments.games)
    runs = {  # may bring games and opponents of their own
        folder: resolve(read_config(folder))
        for path in map(Path, arguments.agents)
        for folder in [path, *(path / name for name in _members_in(path))]
        if is_run(folder)
    }
    brought = {folder: make_games(config.games) for folder, config in runs.items()}
    known = together("games", brought, wanted)
    machines = {folder: make_opponents(config.opponents) for folder, config in runs.items()}
    games = []
    for name in wanted:
        for game in choose_games([name], known):
            if game.num_players == 2:
                games.append(game)
            elif name not in SETS:
                raise UserError(f"--games: {name} has more than two players; they meet in pairs")
    games = list({game.name: game for game in games}.values())
    if not games:
        raise UserError("--games: names no game; leave it out, or name one")
    return games, together("opponents", machines, arguments.agents)


def _split(text: str) -> list[str]:
    """Names separated by commas that are not inside brackets."""
    return [part for part in split_outside(text, ",") if part]


if __name__ == "__main__":
    main()
