"""The command `python -m jaxmoral.compare`: two groups of runs beside each other, over seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmoral.errors import UserError, choose, run_command, say_left_out
from jaxmoral.files import replacing
from jaxmoral.learning.bucket import local_path
from jaxmoral.learning.plugins import add_plugins, name_plugins

if TYPE_CHECKING:
    from jaxmoral.measuring.runs import Run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.compare",
        description="Compares evaluated runs, e.g. of two rewards, in exact measures: means over"
        " seeds, differences (paired where both groups have the same seeds) with 95 % bootstrap"
        " intervals, and effect sizes.",
    )
    parser.add_argument("runs", type=local_path, nargs="+", help="run folders or folders of them")
    parser.add_argument(
        "--with",
        type=local_path,
        nargs="+",
        required=True,
        dest="others",
        help="those compared with",
    )
    parser.add_argument("--suite", default="trained", help="what is shown (default: trained)")
    parser.add_argument(
        "--output-dir",
        type=local_path,
        help="gets comparison.csv (all suites), comparison.png",
    )
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    name_plugins(arguments.plugin)
    for path in (*arguments.runs, *arguments.others):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder")
    from jaxmoral.measuring.comparing import FEW, compare, in_words  # slow to import

    ours, others = (_read(folders) for folders in (arguments.runs, arguments.others))
    found = compare(ours, others)
    choose("--suite", arguments.suite, dict.fromkeys(found.table["suite"].unique()))
    print(in_words(found, arguments.suite))
    sizes = f"{found.table['runs a'].iloc[0]} and {found.table['runs b'].iloc[0]} runs"
    if found.few:
        print(f"{sizes}: fewer than {FEW} seeds say nothing about others; no intervals")
    else:
        how = f"paired by seed ({', '.join(map(str, found.seeds))})" if found.seeds else "unpaired"
        print(f"{sizes}, {how}")
    for key, what in (("xi", "penalties (xi)"), ("rounds", "rounds of an episode")):
        tested = [run.evaluation for run in (*ours, *others) if run.evaluation]
        held = {one[key] for one in tested if key in one}
        if len(held) > 1:
            print(f"note: the runs differ in {what}, {', '.join(map(str, sorted(held)))}")
    folder = arguments.output_dir
    if folder is not None:
        from jaxmoral.reporting.canvas import save  # slow to import
        from jaxmoral.reporting.comparison import differences

        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "comparison.csv") as scratch:
            found.table.to_csv(scratch, index=False)
        names = _name(arguments.runs), _name(arguments.others)
        save(differences(found, arguments.suite, names), folder / "comparison.png")
        print(f"wrote {folder / 'comparison.csv'} and {folder / 'comparison.png'}")


def _read(folders: Sequence[Path]) -> "list[Run]":
    from jaxmoral.measuring.runs import find_runs, without_stale
    from jaxmoral.reporting.series import group_runs, shown_names

    found, skipped = find_runs(folders)
    fresh, stale = without_stale(found)
    series, copies = group_runs(fresh)
    say_left_out((*skipped, *stale, *copies))
    runs = [run for one in series for run in one.runs]
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no runs there")
    if len(series) > 1:
        kinds = "; ".join(shown_names(series))
        print(f"note: {_name(folders)} differ in more than the seed: {kinds}")
    return runs


def _name(folders: Sequence[Path]) -> str:
    return folders[0].name if len(folders) == 1 else f"{folders[0].name} and others"


if __name__ == "__main__":
    main()
