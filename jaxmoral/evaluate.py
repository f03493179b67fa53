"""The command `python -m jaxmoral.evaluate`: measure an agent on every game at once."""

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmoral import config as configs
from jaxmoral.config.described import KeepsLines, keys_help
from jaxmoral.errors import UserError, check_output, run_command, say_left_out, split_outside
from jaxmoral.language.prompts import PERSONAS
from jaxmoral.language.scenarios import LABEL_SETS, ScenarioSuite, read_suite
from jaxmoral.language.scenarios import SUITES as SCENARIO_SUITES
from jaxmoral.language.suites import SUITES
from jaxmoral.language.texts import BUILTIN
from jaxmoral.learning.bucket import at_hand, local_path, place_of
from jaxmoral.learning.plugins import add_plugins, name_plugins
from jaxmoral.learning.run_folder import is_population, member_names, read_config
from jaxmoral.world.games import GAMES, SETS
from jaxmoral.world.opponents import OPPONENTS

if TYPE_CHECKING:
    from jaxmoral.learning.saved import Which
    from jaxmoral.measuring.beyond import Asked
    from jaxmoral.measuring.source import Loaded


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.evaluate",
        description="Evaluates a run, or an untouched model, on many games in one program. With"
        " --model every key of the configuration is also a flag, e.g. --prompt.template chat.",
        epilog=keys_help(),
        formatter_class=KeepsLines,
    )
    parser.add_argument(
        "--run",
        type=place_of,
        help="of a run or a population, also in a bucket; the base is evaluated beside it",
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
    parser.add_argument(
        "--scenarios",
        help="comma-separated: suites of text dilemmas by name:"
        f" {', '.join(SCENARIO_SUITES)}, or files (.yaml, .jsonl; GT-HarmBench, MoralChoice and"
        " ETHICS as .csv)",
    )
    parser.add_argument(
        "--scenario-persona",
        metavar="PERSONA",
        help=f"what goes before scenarios: {', '.join(PERSONAS)}, a file or a text; the"
        " configuration's without it",
    )
    parser.add_argument(
        "--label-sets",
        help=f"comma-separated names of what options are called: {', '.join(LABEL_SETS)}; all"
        " without it",
    )
    parser.add_argument("--tags", help="comma-separated tags that are counted; all without it")
    parser.add_argument(
        "--skip-bad-items",
        action="store_true",
        help="leave out, and say, the items of files that cannot be used",
    )
    parser.add_argument(
        "--retention",
        metavar="TEXTS",
        help=f"texts on which base and tuned are compared: {BUILTIN}, or a .txt or .jsonl file",
    )
    parser.add_argument("--protocols", help="comma-separated: exact, long-run, sampled, paper")
    parser.add_argument(
        "--update",
        type=_checkpoint,
        help="number of the checkpoint, instead of the newest, or best, that of the highest exact"
        " reward; its evaluation goes to evaluation-NUMBER.json",
    )
    parser.add_argument(
        "--thinking",
        type=_number,
        help="the most tokens of a thought, if not those of training; 0 for none",
    )
    parser.add_argument(
        "--thoughts-of",
        type=local_path,
        help="another run, whose thoughts the agent is given as well in the suite thoughts",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        help="the JSON file; evaluation.json in the run's folder without it. What the file holds of"
        " the same checkpoint is kept and added to",
    )
    add_plugins(parser)
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _checkpoint(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of updates nor best")
    return text if text == "best" else int(text)


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    name_plugins(arguments.plugin)
    run, output, update = arguments.run, arguments.output, arguments.update
    if (run is None) == (arguments.model is None):
        raise UserError("give either --run FOLDER or --model NAME")
    if run is not None and flags:
        raise UserError(f"a run's configuration is fixed; unknown flags {' '.join(flags)}")
    if run is None and update is not None:
        raise UserError("--update: an untrained model has no checkpoints; leave it out")
    if output is not None:
        check_output(output)
    config = _config_of(run, arguments, flags)
    from jaxmoral.devices import cluster

    cluster.start()
    if config is not None:  # what can be refused is, before the slow imports
        from jaxmoral.learning.resolve import resolve

        resolve(config)
    asked = _beyond(arguments)
    from jaxmoral.models.load import use_compilation_cache

    use_compilation_cache()
    with ExitStack() as stack:
        if run is not None:
            place = stack.enter_context(at_hand(run, writes=output is None))
            run = place.folder
        source = config if run is None else run
        assert source is not None  # only a bucket's configuration was not at hand
        _measure(source, arguments, asked)


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of `evaluation` that are asked for; the others are None."""
    chosen: dict[str, Any] = {
        name: None if (text := getattr(arguments, name)) is None else split_outside(text, ",")
        for name in ("games", "opponents", "suites", "protocols")
    }
    return chosen | {"thinking": arguments.thinking}


def _config_of(
    run: Path | str | None, arguments: argparse.Namespace, flags: list[str]
) -> configs.Config | None:
    """What is evaluated and how, a population's first member for all; None in a bucket."""
    if isinstance(run, str):
        return None
    if run is None:
        config = configs.load(None, ["--model.source", arguments.model, *flags])
    else:
        config = read_config(run / member_names(run)[0] if is_population(run) else run)
    return configs.with_evaluation(config, _chosen(arguments))


def _measure(source: Path | configs.Config, arguments: argparse.Namespace, asked: "Asked") -> None:
    from jaxmoral.devices import cluster
    from jaxmoral.measuring.results import table
    from jaxmoral.measuring.source import load_source

    output, update = arguments.output, arguments.update
    chosen = _chosen(arguments) | {"thoughts_of": arguments.thoughts_of}
    run = source if isinstance(source, Path) else None
    if run is not None and is_population(run):
        if output is not None:
            raise UserError("--output: each member's evaluation.json goes to its own folder")
        _evaluate_members(run, chosen, asked, update=update)
        return
    if output is None and run is not None:
        output = _file_of(run, update)
    elif output is not None and output.is_file():
        from jaxmoral.measuring.keeping import read_evaluation

        read_evaluation(output)
    evaluation = _evaluate(load_source(source, update), chosen, asked)
    if not cluster.is_first():
        return
    written: list[Path] = []
    if output is not None:
        from jaxmoral.reporting.evaluated import keep_and_draw

        written = [output, *keep_and_draw(evaluation, output)]
    print(table(evaluation))
    if written:
        print(f"wrote {' and '.join(map(str, written))}")


def _beyond(arguments: argparse.Namespace) -> "Asked":
    """What is asked for beyond games; files are read now."""
    from jaxmoral.measuring.beyond import Asked, check

    for name in ("scenario_persona", "label_sets", "tags", "skip_bad_items"):
        if getattr(arguments, name) and arguments.scenarios is None:
            raise UserError(f"--{name.replace('_', '-')}: needs --scenarios")
    listed = lambda text: None if text is None else split_outside(text, ",")
    suites: list[ScenarioSuite] = []
    for source in listed(arguments.scenarios) or ():
        suite, lost = read_suite(source, arguments.skip_bad_items)
        if suite.name in [other.name for other in suites]:
            raise UserError(f"--scenarios: two suites are called {suite.name}; rename a file")
        suites.append(suite)
        say_left_out(lost)
    asked = Asked(
        suites=suites,
        persona=arguments.scenario_persona,
        label_sets=listed(arguments.label_sets) or tuple(LABEL_SETS),
        tags=listed(arguments.tags),
        skip=arguments.skip_bad_items,
        retention=arguments.retention,
    )
    check(asked)
    return asked


def _evaluate(loaded: "Loaded", chosen: dict[str, Any], asked: "Asked") -> dict[str, Any]:
    from jaxmoral.measuring.beyond import check_loaded, measure_beyond
    from jaxmoral.measuring.evaluation import evaluate_agent

    check_loaded(loaded, asked)
    evaluation = evaluate_agent(loaded, **chosen)
    beyond, lost = measure_beyond(loaded, asked)
    say_left_out(lost)
    return evaluation | beyond


def _file_of(folder: Path, update: "Which") -> Path:
    """Where a run's evaluation goes; raises UserError if there is anything but an evaluation."""
    from jaxmoral.learning.saved import update_of
    from jaxmoral.measuring.keeping import EVALUATION, of_update, read_evaluation

    number = None if update is None else update_of(folder, update)
    path = folder / (EVALUATION if number is None else of_update(number))
    if path.is_file():
        read_evaluation(path)  # damage is found now, not after minutes
    return path


def _evaluate_members(
    home: Path, chosen: dict[str, Any], asked: "Asked", *, update: "Which"
) -> None:
    from jaxmoral.devices import cluster
    from jaxmoral.learning.saved import load_population
    from jaxmoral.measuring.results import summary, table
    from jaxmoral.measuring.source import load_source
    from jaxmoral.reporting.evaluated import keep_and_draw

    lines: list[str] = []
    files = {name: _file_of(home / name, update) for name in member_names(home)}
    for folder, member in load_population(home, update):
        if not member.is_finite():
            lines.append(f"{folder.name}: left out; its training diverged")
            continue
        evaluation = _evaluate(load_source(member), chosen, asked)
        if cluster.is_first():
            file = files[folder.name]
            keep_and_draw(evaluation, file)
            print(f"{folder.name}\n{table(evaluation)}\n")
            lines.append(f"{folder.name}: {summary(evaluation)}; in {file.name}")
    if cluster.is_first():
        print("\n".join(lines))
        print(f"next: python -m jaxmoral.report {shlex.quote(str(home))}")


if __name__ == "__main__":
    main()
