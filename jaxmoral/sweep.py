"""The command `python -m jaxmoral.sweep`: train and evaluate many experiments with many seeds.

Each run has its own folder. What is finished is left alone, what was cut is resumed, what fails is
reported at the end and does not stop the rest. All results land in one tidy table.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.errors import UserError, run_command
from jaxmoral.evaluate import write_json
from jaxmoral.evaluation import evaluate_agent
from jaxmoral.gemma.load import use_compilation_cache
from jaxmoral.runs import read_run, tidy
from jaxmoral.training import train_agent


def run_name(path: Path, seed: int) -> str:
    """A run folder's name."""
    return f"{path.stem}-seed{seed}"


def run_one(config: Config, folder: Path) -> int | None:
    """Trains and evaluates one run as far as that is still to do.

    Returns:
      The signal that interrupted it, or None.
    """
    evaluation = folder / "evaluation.json"
    if evaluation.is_file():
        print(f"{folder.name}: finished before")
        return None
    print(f"{folder.name}:")
    trained = train_agent(config, folder, resume=(folder / "checkpoints").exists())
    if trained.interrupted is None:
        write_json(evaluate_agent(trained), evaluation)
    return trained.interrupted


def sweep(
    paths: Sequence[Path], seeds: Sequence[int], output: Path, flags: Sequence[str]
) -> dict[str, str]:
    """Runs every experiment with every seed.

    Args:
      paths: YAML files.
      seeds: of the runs.
      output: the folder of run folders; the table goes there too.
      flags: over every file's keys.

    Returns:
      What failed: the run's name to one line.
    """
    failed: dict[str, str] = {}
    done: list[Path] = []
    for seed in seeds:
        for path in paths:
            folder = output / run_name(path, seed)
            try:
                config = configs.load(path, [*flags, "--seed", str(seed)])
                interrupted = run_one(config, folder)
            except UserError as error:
                failed[folder.name] = str(error)
            except Exception as error:  # a crash of one run must not take the others with it
                traceback.print_exc()
                failed[folder.name] = f"{type(error).__name__}: {error}"
            else:
                if interrupted is not None:
                    print("stopped; the same command goes on from here")
                    sys.exit(128 + interrupted)
                done.append(folder)
            if folder.name in failed:
                print(f"{folder.name}: failed ({failed[folder.name]})", file=sys.stderr)
    if done:
        table = tidy(map(read_run, done))
        table.to_csv(output / "results.csv", index=False)
        table.to_parquet(output / "results.parquet", index=False)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.sweep",
        description="Trains and evaluates experiments. Every key of the configuration is also a"
        " flag, for all of them.",
    )
    parser.add_argument("configs", type=Path, nargs="+", help="YAML files, one an experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 5, 6])
    parser.add_argument("--output-dir", type=Path, required=True, help="the folder of run folders")
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between two runs
    use_compilation_cache()
    names = [path.stem for path in arguments.configs]
    if len(set(names)) < len(names):
        raise UserError("two configurations have the same file name, so their runs would too")
    output = arguments.output_dir
    failed = sweep(arguments.configs, arguments.seeds, output, flags)
    total = len(arguments.configs) * len(arguments.seeds)
    print(f"{total - len(failed)} of {total} runs are finished in {output}")
    if len(failed) < total:
        print(f"wrote {output / 'results.csv'} and {output / 'results.parquet'}")
        print(f"next: python -m jaxmoral.report {output}")
    for name, line in failed.items():
        print(f"failed: {name}: {line}", file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
