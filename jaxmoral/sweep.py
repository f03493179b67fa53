"""The command `python -m jaxmoral.sweep`: train and evaluate many experiments with many seeds.

Each run has its own folder. What is finished is left alone, what was cut is resumed, what was asked
for otherwise before is evaluated again or refused; what fails is reported at the end and does not
stop the rest. The results of all runs in the folder land in one tidy table.
"""

import argparse
import dataclasses
import itertools
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.config.described import KeepsLines, keys_help
from jaxmoral.errors import UserError, of_own_code, run_command, say_left_out
from jaxmoral.files import replacing
from jaxmoral.learning.bucket import local_path
from jaxmoral.learning.plugins import add_plugins, as_flags, names_kept
from jaxmoral.learning.run_folder import holds_any, is_run, read_config


def run_name(path: Path, seed: int) -> str:
    """A run folder's name."""
    return f"{path.stem}-seed{seed}"


def run_one(config: Config, folder: Path) -> int | None:
    """Trains and evaluates one run as far as that is still to do.

    Returns:
      The signal that interrupted it, or None.

    Raises:
      UserError: the folder holds a run that was trained otherwise; it is left as it is.
    """
    from jaxmoral.api import train_agent  # slow to import, as all the others here
    from jaxmoral.learning.resolve import resolve
    from jaxmoral.measuring.evaluation import evaluate_agent
    from jaxmoral.measuring.keeping import EVALUATION, read_evaluation
    from jaxmoral.reporting.evaluated import keep_and_draw

    asked = resolve(config)
    evaluation = folder / EVALUATION
    if is_run(folder):
        made = read_config(folder)
        if changed := trained_otherwise(asked, made):
            raise UserError(
                f"{folder} holds a run that was trained with another {', '.join(changed)}; choose"
                " another --output-dir, or move it away"
            )
        config = dataclasses.replace(config, evaluation=made.evaluation)
        held = read_evaluation(evaluation) if evaluation.is_file() else None
        if held is not None and _updates_made(folder) == asked.updates:
            lacking = missing(held, dataclasses.replace(made, evaluation=asked.evaluation))
            if not lacking:
                print(f"{folder.name}: finished before")
                return None
            rest = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            print(f"{folder.name}: trained before; not evaluated before: {lacking[0]}{rest}")
        else:
            print(f"{folder.name}: going on")
    else:
        print(f"{folder.name}:")
    trained = train_agent(config, folder, resume=holds_any(folder))
    if trained.interrupted is None:
        tested = dataclasses.replace(trained.config, evaluation=asked.evaluation)
        keep_and_draw(evaluate_agent(dataclasses.replace(trained, config=tested)), evaluation)
    return trained.interrupted


def _updates_made(folder: Path) -> int:
    from jaxmoral.learning import metrics

    history = metrics.read(folder)
    return history[-1]["update"] if history else 0


def trained_otherwise(asked: Config, made: Config) -> list[str]:
    """The keys of a resolved configuration that would train another run than was made.

    What only the model's and the adapter's files could tell is taken from the run. The number of
    updates is left out: whether a run can go on is for training to say.
    """
    from jaxmoral.learning.resume import as_begun, changed_before

    changed = changed_before(as_begun(asked, made), made)
    return [key for key in changed if not key.startswith("evaluation.")]


def missing(evaluation: dict[str, Any], config: Config) -> list[str]:
    """What a settled configuration asks for and an evaluation does not hold, in a few words each.

    An evaluation of an earlier version does not say of which checkpoint it is; it counts as one of
    the last.
    """
    from jaxmoral.learning.mixture import presentation_with
    from jaxmoral.measuring.evaluation import chosen_conditions, described, xi_of

    settings = config.evaluation
    wanted: dict[str, Any] = {
        "update": config.updates,
        "rounds": settings.rounds,
        "xi": xi_of(config),
        "thinking": settings.thinking,
    }
    if "sampled" in settings.protocols:
        wanted["episodes"] = settings.episodes
    thinking = evaluation.get("config", {}).get("evaluation", {}).get("thinking")
    found = {"update": config.updates, "thinking": thinking} | evaluation
    lacking = [f"{key} {value}" for key, value in wanted.items() if found.get(key) != value]
    protocols: list[str] = list(dict.fromkeys(["exact", *settings.protocols]))
    pairs = [(who, name) for who in settings.opponents for name in protocols if name != "paper"]
    pairs += [("random", "paper")] if "paper" in protocols else []
    presentation = presentation_with(config, config.prompt.labels)
    for suite, named in chosen_conditions(config, presentation).items():
        for name, condition in named.items():
            held = evaluation["suites"].get(suite, {}).get(name, {})
            if any(held.get(key) != value for key, value in described(condition).items()):
                lacking.append(f"{suite}: {name}")
                continue
            results = held["policies"]["base"]["opponents"]
            lacking += [
                f"{suite}: {name} against {opponent}, {protocol}"
                for opponent, protocol in pairs
                if protocol not in results.get(opponent, {})
            ]
    return lacking


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
    done = 0
    for seed in seeds:
        for path in paths:
            folder = output / run_name(path, seed)
            try:
                with names_kept():  # each file's plugins are its own
                    config = configs.load(path, [*flags, "--seed", str(seed)])
                    interrupted = run_one(config, folder)
            except UserError as error:
                failed[folder.name] = str(error)
            except Exception as error:  # a crash of one run must not take the others with it
                text = of_own_code(error)
                if text is None:
                    traceback.print_exc()
                failed[folder.name] = text or f"{type(error).__name__}: {error}"
            else:
                if interrupted is not None:
                    print("stopped; the same command goes on from here")
                    sys.exit(128 + interrupted)
                done += 1
            if folder.name in failed:
                print(f"{folder.name}: failed ({failed[folder.name]})", file=sys.stderr)
    if done:  # with the runs of earlier sweeps, whose table this replaces
        from jaxmoral.measuring.runs import find_runs, tidy

        runs, skipped = find_runs([output])
        say_left_out(skipped)
        table = tidy(runs)
        with replacing(output / "results.csv") as scratch:
            table.to_csv(scratch, index=False)
        with replacing(output / "results.parquet") as scratch:
            table.to_parquet(scratch, index=False)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.sweep",
        description="Trains and evaluates experiments. Every key of the configuration is also a"
        " flag, for all of them, e.g. --updates 20 --env.opponent random.",
        epilog=keys_help(),
        formatter_class=KeepsLines,
    )
    parser.add_argument("configs", type=local_path, nargs="+", help="YAML files, one an experiment")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3, 5, 6],
        help="whole numbers; each file is run with each (default: the paper's, 1 2 3 5 6)",
    )
    parser.add_argument(
        "--output-dir",
        type=local_path,
        required=True,
        help="the folder of run folders; what is in it already is gone on with, not overwritten",
    )
    add_plugins(parser)
    flags, rest = split_flags(sys.argv[1:])
    arguments, unknown = parser.parse_known_intermixed_args(rest)
    run_command(lambda: _run(arguments, [*flags, *unknown, *as_flags(arguments.plugin)]))


def split_flags(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of configuration keys with their values, and all else, files among it."""
    flags: list[str] = []
    rest: list[str] = []
    given = iter(texts)
    for text in given:
        flag, equals, value = text.partition("=")
        # Any dotted name: those of own games are not listed. A sweep's seeds are its own.
        is_key = "." in flag or (flag[2:] in configs.KEYS and flag != "--seed")
        if flag.startswith("--") and is_key:
            flags += [flag, value] if equals else [flag, *itertools.islice(given, 1)]
        else:
            rest.append(text)
    return flags, rest


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between two runs
    for path in arguments.configs:
        if not path.is_file():  # said once, not for every seed
            raise UserError(f"config: there is no file {path}")
    names = [path.stem for path in arguments.configs]
    if len(set(names)) < len(names):
        raise UserError("two configurations have the same file name, so their runs would too")
    from jaxmoral.models.load import use_compilation_cache  # slow to import

    use_compilation_cache()
    output = arguments.output_dir
    failed = sweep(arguments.configs, arguments.seeds, output, flags)
    total = len(arguments.configs) * len(arguments.seeds)
    print(f"{total - len(failed)} of {total} runs are finished in {output}")
    if len(failed) < total:
        print(f"wrote {output / 'results.csv'} and {output / 'results.parquet'}")
        print(f"next: python -m jaxmoral.report {shlex.quote(str(output))}")
    for name, line in failed.items():
        print(f"failed: {name}: {line}", file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
