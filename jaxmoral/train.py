"""The command `python -m jaxmoral.train`: fine-tune an agent with an intrinsic reward."""

import argparse
import signal
import sys
from pathlib import Path

from jaxmoral import config as configs
from jaxmoral import figures
from jaxmoral.errors import run_command
from jaxmoral.gemma.load import use_compilation_cache
from jaxmoral.runs import read_run
from jaxmoral.training import check_run_folder, train


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.train",
        description="Fine-tunes an agent. Every key of the configuration is also a flag, e.g."
        " --reward.name utilitarian --ppo.learning_rate 1e-4.",
    )
    parser.add_argument("--config", type=Path, help="a YAML file; defaults are used without one")
    parser.add_argument("--output-dir", type=Path, required=True, help="the run folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    arguments, flags = parser.parse_known_args()
    run_command(lambda: _run(arguments, flags))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    folder = arguments.output_dir
    check_run_folder(folder, arguments.resume)
    path = arguments.config
    if path is None and arguments.resume:
        path = folder / "config.yaml"
    config = configs.load(path, flags)
    use_compilation_cache()
    trained = train(config, folder, arguments.resume)
    if trained.interrupted is not None:
        name = signal.Signals(trained.interrupted).name
        print(f"{name}: saved after update {int(trained.state.update)}; --resume goes on from here")
        sys.exit(128 + trained.interrupted)
    run = read_run(folder)
    picture = figures.save(figures.training_types({run.title: [run]}), folder / "action_types.png")
    print(f"trained; metrics, checkpoints and {picture.name} are in {folder}")
    print(f"next: python -m jaxmoral.evaluate --run {folder}")


if __name__ == "__main__":
    main()
