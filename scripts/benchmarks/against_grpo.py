"""Times an update with thoughts against TRL's GRPOTrainer, on the same weights and prompts.

    python scripts/benchmarks/against_grpo.py [--updates 3]

Sixteen prompts, eight generations of 32 new tokens for each, one optimiser step. TRL writes thought
and answer in them, ours a thought, and the answer after it is exact; ours also in smaller trees,
which take less memory and more time. TRL and its dependencies are installed in an environment of
their own (once, about 2 GB). The programs take turns on one machine; medians and ranges go to
docs/benchmarks/against_grpo.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from against_trl import ALPHA, OURS, RANK, first_log_probs
from workers import Worker, environment, in_turns, spread, write

from jaxmoral import config as configs
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.models.lora import Lora
from jaxmoral.models.merged import save_merged
from jaxmoral.world.rewards import get_reward, reward_table

REQUIREMENTS = ["torch==2.13.0", "trl==1.16.0", "transformers==5.24.0", "peft==0.21.2"]
TOKENS, THOUGHTS = 32, 8
THINKING = ["--thinking.tokens", TOKENS, "--thinking.thoughts", THOUGHTS, "--env.episodes", 4096]
NODES = {"one tree": 8192, "trees of 1,024 nodes": 1024}


def write_task(folder: Path) -> Path:
    """The base in Hugging Face layout, and what TRL's loop needs besides; the task's path."""
    config = resolve(configs.load(None, list(map(str, THINKING))))
    agent, game = make_agent(config), training_game(config)
    model, prompter = agent.model, agent.prompter
    assert model is not None
    assert isinstance(prompter, Prompter)
    assert prompter.thinking is not None
    save_merged(folder, model, {}, Lora(RANK, ALPHA, 0.0, ()))
    texts = prompter.texts(Condition(game, agent.presentation))
    labels = agent.presentation.labels
    first = [model.tokenizer.encode(x, add_special_tokens=False)[0] for x in labels]
    task = {
        "texts": [text + prompter.thinking.opens for text in texts],
        "prompts": [prompter.tokens(text) for text in texts],
        "cue": prompter.thinking.cue,
        "labels": labels,
        "rewards": reward_table(game, get_reward("deontological"), 3.0, -6.0).tolist(),
        "first_tokens": first,
        "first_log_probs": first_log_probs(agent, first),
        "tokens": TOKENS,
        "thoughts": THOUGHTS,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": 1.41e-5,
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3)
    updates = parser.parse_args().updates
    python = environment("trl-grpo", *REQUIREMENTS)
    with tempfile.TemporaryDirectory() as scratch:
        task = write_task(Path(scratch))
        trl = Worker(python, "grpo_worker.py", task, scratch)
        expected = json.loads(task.read_text())["first_log_probs"]
        np.testing.assert_allclose(trl.ready["first_log_probs"], expected, atol=1e-3)
        workers = {"TRL, GRPOTrainer": trl}
        for name, nodes in NODES.items():
            flags = [*OURS, *THINKING, "--model.max_nodes", nodes]
            workers[f"ours, {name}"] = Worker(sys.executable, "jaxmoral_worker.py", *flags)
        results = {}
        for name, answers in in_turns(workers, updates).items():
            results[name] = {
                "seconds_per_update": spread(answer["seconds"] for answer in answers),
                "peak_gib": answers[-1]["peak_gib"],
                "versions": workers[name].ready["versions"],
            }
            workers[name].close()
    write("against_grpo", {"updates": updates, "programs": results})


if __name__ == "__main__":
    main()
