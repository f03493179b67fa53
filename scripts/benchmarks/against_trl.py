"""Times an update against the paper's loop on TRL: the same weights, prompts, rewards and rank.

    python scripts/benchmarks/against_trl.py [--updates 5]

TRL and its dependencies are installed in an environment of their own (once, about 2 GB). The
programs take turns on one machine; medians and ranges go to docs/benchmarks/against_trl.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from workers import Worker, environment, in_turns, spread, write

from jaxmoral.config import parse
from jaxmoral.language import prompts
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.models.lora import Lora
from jaxmoral.models.merged import save_merged
from jaxmoral.world.games import get_game
from jaxmoral.world.rewards import get_reward, reward_table

REQUIREMENTS = ["torch==2.13.0", "trl==0.11.4", "transformers==4.51.3", "peft==0.21.2"]
REQUIREMENTS += ["rich==15.0.0"]  # which that trl needs and does not name
RANK, ALPHA, ROUNDS = 64, 32.0, 5
OURS = ["--lora.rank", RANK, "--lora.alpha", ALPHA, "--env.rounds", ROUNDS, "--updates", 10_000]


def write_task(folder: Path, reward: str, learning_rate: float, seed: int = 0) -> Path:
    """The base in Hugging Face layout, and what TRL's loop needs besides; the task's path."""
    agent = make_agent(resolve(parse({})))
    model = agent.model
    assert model is not None
    save_merged(folder, model, {}, Lora(RANK, ALPHA, 0.0, ()))
    presentation, game = Presentation(), get_game("ipd")
    prompter = Prompter(model, "plain")
    sequences = [prompter.tokens(text) for text in prompts.all_prompts(game, presentation)]
    first = [model.tokenizer.encode(x, add_special_tokens=False)[0] for x in presentation.labels]
    task = {
        "prompts": sequences,
        "labels": presentation.labels,
        "first_tokens": first,
        "rewards": reward_table(game, get_reward(reward), 3.0, -6.0).tolist(),
        "rounds": ROUNDS,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": learning_rate,
        "seed": seed,
        "first_log_probs": first_log_probs(agent, first),
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    return path


def first_log_probs(agent: Agent, tokens: list[int]) -> list[float]:
    """Of these tokens after the first prompt, to know that both programs have one model."""
    inputs = agent.prompter.pack([[Condition(get_game("ipd"), Presentation())]])
    inputs = jax.tree.map(lambda leaf: leaf[0], inputs)
    reference = agent.policy.reference_parameters()
    rows, prompt = jnp.array(tokens)[:, None], jnp.zeros(len(tokens), jnp.int32)
    found, _ = agent.policy.bind(agent.frozen, inputs).score(reference, prompt=prompt, tokens=rows)
    return np.asarray(found)[:, 0].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=5)
    rounds = parser.parse_args().updates
    python = environment("trl", *REQUIREMENTS)
    with tempfile.TemporaryDirectory() as scratch:
        task = write_task(Path(scratch), "deontological", 1.41e-5)
        trl = Worker(python, "trl_worker.py", task, scratch)
        expected = json.loads(task.read_text())["first_log_probs"]
        np.testing.assert_allclose(trl.ready["first_log_probs"], expected, atol=1e-3)
        episodes = {"ours, 1 episode": 1, "ours, 4,096 episodes": 4096}
        workers = {"TRL, 1 episode": trl} | {
            name: Worker(sys.executable, "jaxmoral_worker.py", *OURS, "--env.episodes", number)
            for name, number in episodes.items()
        }
        tokens = ["--ppo.level", "token", "--env.episodes", 1]
        workers["ours, 1 episode, by tokens"] = Worker(
            sys.executable, "jaxmoral_worker.py", *OURS, *tokens
        )
        found = in_turns(workers, rounds)
        played = {name: ROUNDS * episodes.get(name, 1) for name in workers}
        results = {}
        for name, answers in found.items():
            seconds = spread(answer["seconds"] for answer in answers)
            results[name] = {
                "seconds_per_update": seconds,
                "rounds_per_second": played[name] / seconds["median"],
                "peak_gib": answers[-1]["peak_gib"],
                "versions": workers[name].ready["versions"],
            }
            workers[name].close()
    write("against_trl", {"updates": rounds, "programs": results})


if __name__ == "__main__":
    main()
