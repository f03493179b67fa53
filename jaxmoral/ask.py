"""The command `python -m jaxmoral.ask`: the follow-up questions of arXiv 2410.01639, Fig. 26.

After the prompt and the trained agent's answer, that agent and its base are asked about the answer.
"""

import argparse
from pathlib import Path

from jaxmoral.errors import check_seed, run_command
from jaxmoral.learning.bucket import local_path
from jaxmoral.learning.plugins import add_plugins, name_plugins
from jaxmoral.learning.run_folder import check_alone


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.ask",
        description="Asks a trained agent and its base why; the answers go to answers.json.",
    )
    parser.add_argument("--run", type=local_path, required=True, help="a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the words")
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments.run, arguments.seed, arguments.plugin))


def _run(folder: Path, seed: int, plugins: list[str]) -> None:
    check_seed(seed)
    name_plugins(plugins)
    check_alone(folder)
    import jax  # slow, as the others; what can be refused is before

    from jaxmoral.learning.saved import load_trained
    from jaxmoral.measuring.keeping import ANSWERS, read_json, set_aside, write_json
    from jaxmoral.measuring.questions import ask
    from jaxmoral.models.load import use_compilation_cache

    path = folder / ANSWERS
    earlier = read_json(path) if path.is_file() else None  # damage is found now
    use_compilation_cache()
    run = load_trained(folder)
    answers = ask(run.config, run.agent, run.trainable, jax.random.key(seed))
    if earlier not in (None, answers):
        print(f"{path.name} held other answers; they are in {set_aside(path)} now")
    write_json(answers, path)
    for one in answers:
        print(f"{one['policy']}, after {one['remembered']}: {one['answer']}. {one['question']}")
        if "thought" in one:
            print("    (thought:", " ".join(one["thought"].split()) + ")")
        print("   ", " ".join(one["said"].split()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
