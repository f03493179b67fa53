"""The command `python -m jaxmoral.train`: fine-tune an agent with an intrinsic reward."""

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmoral import config as configs
from jaxmoral.config.described import KeepsLines, keys_help
from jaxmoral.errors import UserError, run_command
from jaxmoral.learning.bucket import at_hand, local_path, place_of
from jaxmoral.learning.plugins import add_plugins, as_flags, name_plugins
from jaxmoral.learning.run_folder import (
    CONFIG,
    check_run_folder,
    is_population,
    member_names,
    read_config,
)
from jaxmoral.reporting.catalogue import add_list

if TYPE_CHECKING:
    from jaxmoral.learning.trained import TrainedAgent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.train",
        description="Fine-tunes an agent, or several at once where a key has a list of values."
        " Every key of the configuration is a flag, e.g. --reward.name utilitarian --seed [0,1,2].",
        epilog=keys_help(),
        formatter_class=KeepsLines,
    )
    parser.add_argument(
        "--config", type=local_path, help="a YAML file; defaults are used without one"
    )
    parser.add_argument(
        "--output-dir",
        type=place_of,
        help="of the run or the population; also in a bucket: gs://BUCKET/NAME, s3://BUCKET/NAME",
    )
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="first",
        metavar="HISTORY",
        help="show prompts (the first; all; or those after CC, CD, ...), what is a legal answer,"
        " the untrained policy, memory and time, and write nothing",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint; with a larger --updates, for longer than before",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="with --resume and a larger --updates: also where a schedule depends on their number",
    )
    add_plugins(parser)
    add_list(parser)
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, [*flags, *as_flags(arguments.plugin)]))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    if arguments.dry_run is not None:
        if arguments.resume:
            raise UserError("--dry-run: cannot stand with --resume")
        _preview(configs.load_members(arguments.config, flags), arguments.dry_run)
        return
    if arguments.output_dir is None:
        raise UserError("--output-dir: is needed, or --dry-run")
    from jaxmoral.devices import cluster  # slow to import, as what is imported below

    cluster.start()
    if arguments.extend and not arguments.resume:
        raise UserError("--extend: needs --resume, and more --updates than before")
    with at_hand(arguments.output_dir, writes=True) as place:
        cluster.on_first(lambda: check_run_folder(place.folder, arguments.resume))
        members = _members(arguments, flags, place.folder)
        _check_names(members)
        from jaxmoral.api import train_population
        from jaxmoral.models.load import use_compilation_cache

        use_compilation_cache()
        everyone = train_population(members, place, arguments.resume, extend=arguments.extend)
    _tell(everyone, place.folder, arguments.output_dir)


def _check_names(members: dict[str, configs.Config]) -> None:
    """Refuses what can be refused before the slow imports."""
    from jaxmoral.learning.resolve import resolve

    resolved = [resolve(config) for config in members.values()]
    if len(members) > 1:
        from jaxmoral.learning.population import check_asked, check_population

        check_asked(list(members.values()))
        check_population(resolved)


def _members(
    arguments: argparse.Namespace, flags: list[str], folder: Path
) -> dict[str, configs.Config]:
    path = arguments.config
    again = path is not None or configs.asks_for_members(flags)  # the whole command
    if arguments.resume and not again:
        name_plugins(arguments.plugin)  # without which the folder may not be read
        if is_population(folder):
            members = {name: read_config(folder / name, flags) for name in member_names(folder)}
            # Members' files are written one by one, which something may have cut short.
            longest = max(config.updates for config in members.values())
            return {
                name: dataclasses.replace(config, updates=longest)
                for name, config in members.items()
            }
        read_config(folder)  # and run what it was made with
        path = folder / CONFIG
    return configs.load_members(path, flags)


def _tell(everyone: "dict[str, TrainedAgent]", folder: Path, shown: Path | str) -> None:
    """What to know when training has ended, of a folder that users call something."""
    from jaxmoral.devices import cluster
    from jaxmoral.learning import metrics
    from jaxmoral.measuring.runs import read_run

    trained = next(iter(everyone.values()))
    if trained.interrupted is not None:
        name = signal.Signals(trained.interrupted).name
        print(f"{name}: saved after update {int(trained.state.update)}; --resume goes on from here")
        sys.exit(128 + trained.interrupted)
    if not cluster.is_first():
        return
    if len(everyone) > 1:
        print(f"trained {len(everyone)} members, each a run folder in {shown}")
        for name in everyone:
            print(f"{name}: {metrics.last_line(read_run(folder / name).history[-1])}")
    else:
        print(f"trained; metrics, checkpoints and action_types.png are in {shown}")
    print(f"next: python -m jaxmoral.evaluate --run {shlex.quote(str(shown))}")


def _preview(members: dict[str, configs.Config], which: str) -> None:
    _check_names(members)
    from jaxmoral.measuring.preview import preview
    from jaxmoral.models.load import use_compilation_cache

    use_compilation_cache()
    if len(members) > 1:
        print(f"population {len(members)} members; this is {next(iter(members))}")
    for line in preview(next(iter(members.values())), which):
        print(line, flush=True)


if __name__ == "__main__":
    main()
