"""The command `python -m jaxmoral.evaluate`: measure an agent on every game at once."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from jaxmoral import cluster, figures
from jaxmoral import config as configs
from jaxmoral.errors import UserError, run_command, split_outside
from jaxmoral.evaluation import Which, evaluate_agent, load_population
from jaxmoral.games import GAMES, SETS
from jaxmoral.gemma.load import use_compilation_cache
from jaxmoral.opponents import OPPONENTS
from jaxmoral.results import merge, rows, summary, table, unlike
from jaxmoral.runs import read_json
from jaxmoral.suites import SUITES
from jaxmoral.training import POPULATION, member_names

EVALUATION = "evaluation.json"  # of a run's newest checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.evaluate",
        description="Evaluates a run, or an untouched model, on many games in one program. With"
        " --model every key of the configuration is also a flag, e.g. --prompt.template chat.",
        epilog=f"keys: {', '.join(configs.KEYS)}",
    )
    parser.add_argument(
        "--run", type=Path, help="of a run or a population; the base is evaluated beside it"
    )
    parser.add_argument(
        "--model",
        help="to evaluate it untrained: a packaged model's name, a GGUF file, a folder in Hugging"
        " Face layout, a hub id owner/name, or tabular",
    )
    parser.add_argument(
        "--games",
        help=f"comma-separated: names, e.g. {', '.join(GAMES)}, 'donation(3,1)', or sets:"
        f" {', '.join(SETS)}; all is the paper's and the configuration's own",
    )
    parser.add_argument(
        "--opponents", help=f"comma-separated names: {', '.join(OPPONENTS)}, 'random(0.3)', ..."
    )
    parser.add_argument("--suites", help=f"comma-separated names: {', '.join(SUITES)}; or all")
    parser.add_argument("--protocols", help="comma-separated: exact, long-run, sampled, paper")
    parser.add_argument(
        "--update",
        type=_checkpoint,
        help="number of the checkpoint, instead of the newest, or best, that of the highest exact"
        " reward; its evaluation goes to evaluation-NUMBER.json",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the JSON file; evaluation.json in the run's folder without it. What the file holds of"
        " the same checkpoint is kept and added to",
    )
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _checkpoint(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of updates nor best")
    return text if text == "best" else int(text)


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    run, output, update = arguments.run, arguments.output, arguments.update
    if (run is None) == (arguments.model is None):
        raise UserError("give either --run FOLDER or --model NAME")
    if run is not None and flags:
        raise UserError(f"a run's configuration is fixed; unknown flags {' '.join(flags)}")
    if run is None and update is not None:
        raise UserError("--update: an untrained model has no checkpoints; leave it out")
    split: Callable = lambda text: split_outside(text, ",") if text else None
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"--output: {output} is not a file in an existing folder")
    cluster.start()
    use_compilation_cache()
    chosen = {
        name: split(getattr(arguments, name))
        for name in ("games", "opponents", "suites", "protocols")
    }
    if run is not None and (run / POPULATION).is_file():
        if output is not None:
            raise UserError("--output: each member's evaluation.json goes to its own folder")
        _evaluate_members(run, chosen, update)
        return
    if output is None and run is not None and update is None:
        output = run / EVALUATION
    if output is not None and output.is_file():
        read_evaluation(output)  # damage is found now, not after minutes
    source = run
    if source is None:
        source = configs.load(None, ["--model.source", arguments.model, *flags])
    evaluation = evaluate_agent(source, **chosen, update=update)
    if not cluster.is_first():
        return
    print(table(evaluation))
    if output is None and run is not None:
        output = run / of_update(evaluation["update"])
    if output is None:
        return
    print(f"wrote {output} and {_write(evaluation, output)}")


def _write(evaluation: dict[str, Any], path: Path) -> Path:
    """Keeps an evaluation in a file and draws what the file then holds; returns the picture."""
    name = "regret.png" if path.name == EVALUATION else f"{path.stem}-regret.png"
    return figures.save(draw_regret(keep(evaluation, path)), path.with_name(name))


def _evaluate_members(home: Path, chosen: dict[str, Any], update: Which) -> None:
    lines = []
    for name in member_names(home) if update is None else []:
        if (home / name / EVALUATION).is_file():
            read_evaluation(home / name / EVALUATION)
    for folder, member in load_population(home, update):
        evaluation = evaluate_agent(member, **chosen)
        if cluster.is_first():
            print(f"{folder.name}\n{table(evaluation)}\n")
            name = EVALUATION if update is None else of_update(evaluation["update"])
            _write(evaluation, folder / name)
            lines.append(f"{folder.name}: {summary(evaluation)}; in {name}")
    if cluster.is_first():
        print("\n".join(lines))
        print(f"next: python -m jaxmoral.report {home}")


def of_update(update: int) -> str:
    """The name of the file for a checkpoint that was asked for by its number, or as the best."""
    return f"evaluation-{update}.json"


def keep(evaluation: dict[str, Any], path: Path) -> dict[str, Any]:
    """Writes an evaluation to a file, and keeps what the file holds.

    An evaluation of the same checkpoint and settings becomes one with it, in which what was
    measured again is replaced. Another one gets a file of its own beside it. Both are said.

    Returns:
      What the file holds now.

    Raises:
      UserError: the file holds no evaluation.
    """
    if path.is_file():
        earlier = read_evaluation(path)
        if reasons := unlike(earlier, evaluation):
            aside = set_aside(path)
            of = earlier.get("update", "unknown (an earlier version did not write it)")
            what = ", ".join(f"update {of}" if key == "update" else key for key in reasons)
            print(f"{path.name} held an evaluation that differs ({what}); it is {aside} now")
        else:
            evaluation, replaced = merge(earlier, evaluation)
            if replaced:
                rest = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
                print(f"{path.name}: replaced {replaced[0]}{rest}, measured before")
    write_json(evaluation, path)
    return evaluation


def read_evaluation(path: Path) -> dict[str, Any]:
    """An evaluation from its file; raises UserError if it is damaged, or something else."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("suites"), dict):
        raise UserError(f"{path} holds no evaluation; move it away, or choose another --output")
    return found


def set_aside(path: Path) -> Path:
    """Gives a file another name beside it, so that a new one may take its place."""
    names = (f"{path.stem}-earlier{number}{path.suffix}" for number in ("", *range(2, 10**6)))
    free = next(name for name in names if not path.with_name(name).exists())
    return path.rename(path.with_name(free))


def draw_regret(evaluation: dict[str, Any]) -> figures.Drawn:
    """Exact regret in the first suite's conditions, against the first opponent."""
    everything = pd.DataFrame(rows(evaluation))
    chosen = everything["suite"] == next(iter(evaluation["suites"]))
    chosen &= (everything["protocol"] == "exact") & (
        everything["opponent"] == evaluation["opponents"][0]
    )
    found = everything[chosen]
    found = found.assign(agent=found["policy"].replace("base", figures.BASE))
    conditions = list(dict.fromkeys(found["condition"]))
    return figures.regrets(found, list(dict.fromkeys(found["agent"])), conditions)


def write_json(content: Any, path: Path) -> None:
    """Writes a JSON file, all of it or nothing."""
    scratch = path.with_name(path.name + ".part")
    try:
        scratch.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
