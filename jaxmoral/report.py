"""The command `python -m jaxmoral.report`: runs as one self-contained page and as pictures.

The page holds the counterparts of the figures and tables of arXiv 2410.01639 as far as the runs
cover them, with that paper's own numbers beside ours.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

from jaxmoral.errors import UserError, run_command, say_left_out
from jaxmoral.learning.bucket import at_hand, local_path, place_of
from jaxmoral.learning.plugins import add_plugins, name_plugins


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.report", description="Writes runs as one page and as pictures."
    )
    parser.add_argument(
        "folders",
        type=place_of,
        nargs="+",
        help="folders of runs, of run folders, of tournaments; also in a bucket",
    )
    parser.add_argument("--output", type=local_path, help="the report's folder (FOLDER/report)")
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    name_plugins(arguments.plugin)
    with ExitStack() as stack:
        folders: list[Path] = []
        for name in arguments.folders:
            writes = arguments.output is None and not folders
            folders.append(stack.enter_context(at_hand(name, writes=writes)).folder)
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder")
        from jaxmoral.reporting.page import write_report  # slow to import

        output = arguments.output or folders[0] / "report"
        skipped = write_report(folders, output)
    say_left_out(skipped)
    print(f"wrote {output / 'index.html'}; open it in a browser")


if __name__ == "__main__":
    main()
