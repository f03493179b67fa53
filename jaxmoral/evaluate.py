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
from jaxmoral.evaluation import evaluate_agent, load_population
from jaxmoral.gemma.load import use_compilation_cache
from jaxmoral.results import rows, table
from jaxmoral.training import POPULATION


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.evaluate",
        description="Evaluates a run, or an untouched model, on many games in one program.",
    )
    parser.add_argument(
        "--run", type=Path, help="of a run or a population; the base is evaluated beside it"
    )
    parser.add_argument(
        "--model", help="a model's name, file, folder or hub id, to evaluate it untrained"
    )
    parser.add_argument("--games", help="comma-separated names or sets, e.g. all, plane")
    parser.add_argument("--opponents", help="comma-separated names")
    parser.add_argument("--suites", help="comma-separated names or sets, e.g. all, plane")
    parser.add_argument("--protocols", help="comma-separated: exact, long-run, sampled, paper")
    parser.add_argument(
        "--update",
        type=lambda text: text if text == "best" else int(text),
        help="of the checkpoint, instead of the newest; or best, that of the highest exact reward",
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    if (arguments.run is None) == (arguments.model is None):
        raise UserError("give either --run FOLDER or --model NAME")
    if arguments.run is not None and flags:
        raise UserError(f"a run's configuration is fixed; unknown flags {' '.join(flags)}")
    split: Callable = lambda text: split_outside(text, ",") if text else None
    output = arguments.output
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"--output: {output} is not a file in an existing folder")
    if output is None and arguments.run is not None:
        output = arguments.run / "evaluation.json"
    cluster.start()
    use_compilation_cache()
    source = arguments.run
    if source is None:
        source = configs.load(None, ["--model.source", arguments.model, *flags])
    chosen = {
        name: split(getattr(arguments, name))
        for name in ("games", "opponents", "suites", "protocols")
    }
    if arguments.run is not None and (arguments.run / POPULATION).is_file():
        if arguments.output is not None:
            raise UserError("--output: each member's evaluation.json goes to its own folder")
        for folder, member in load_population(arguments.run, arguments.update):
            evaluation = evaluate_agent(member, **chosen)
            if cluster.is_first():
                write_json(evaluation, folder / "evaluation.json")
                figures.save(draw_regret(evaluation), folder / "regret.png")
                print(f"{folder.name}\n{table(evaluation)}\n")
        print(
            f"wrote each member's evaluation.json; next: python -m jaxmoral.report {arguments.run}"
        )
        return
    evaluation = evaluate_agent(source, **chosen, update=arguments.update)
    if not cluster.is_first():
        return
    print(table(evaluation))

    if output is None:
        return
    write_json(evaluation, output)
    picture = figures.save(draw_regret(evaluation), output.with_name("regret.png"))
    print(f"wrote {output} and {picture}")


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
