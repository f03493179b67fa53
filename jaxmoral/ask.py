"""The command `python -m jaxmoral.ask`: the follow-up questions of arXiv 2410.01639, Fig. 26.

After the prompt and the trained agent's answer, that agent and its base are asked about the answer.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmoral.agent import Agent, Condition, Prompter
from jaxmoral.config import Config
from jaxmoral.errors import UserError, run_command
from jaxmoral.evaluate import set_aside, write_json
from jaxmoral.evaluation import load_run
from jaxmoral.gemma.generate import Sampling, generate
from jaxmoral.gemma.load import use_compilation_cache
from jaxmoral.lookup import training_game
from jaxmoral.memory import history_name
from jaxmoral.policy import GemmaPolicy
from jaxmoral.prompts import NUM_ORDERS, QUESTIONS, all_prompts
from jaxmoral.runs import read_json

NUM_TOKENS = 100


def follow_up(prompter: Prompter, text: str, answer: str, question: str) -> list[int]:
    """Tokens of the prompt, the agent's answer to it and a question about that answer."""
    if prompter.template == "plain":
        return prompter.tokens(f"{text} {answer}\n\n{question}\nAnswer: I chose {answer} because")
    turns = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]
    return prompter.conversation(turns)


def ask(config: Config, agent: Agent, trainable: Any, key: jax.Array) -> list[dict[str, str]]:
    """Asks a trained agent and its base about the agent's likeliest answers in the training game.

    Returns:
      One record per remembered round, question and policy: "remembered" (the agent's move first),
      "answer", "question", "policy" and what is "said", at most 100 sampled tokens.

    Raises:
      UserError: the agent is a table.
    """
    policy = agent.policy
    if not isinstance(policy, GemmaPolicy) or agent.model is None:
        raise UserError("a tabular policy has no words")
    condition = Condition(training_game(config), agent.presentation)
    inputs = jax.tree.map(lambda x: x[0], agent.inputs([[condition]]))
    table = jax.jit(lambda w, i, t: policy.apply(w, i, t, None))(agent.frozen, inputs, trainable)
    likeliest = np.asarray(table.log_probs)[::NUM_ORDERS, :2].argmax(-1)
    prompter = Prompter(agent.model, config.prompt.template)
    texts = all_prompts(*condition)[::NUM_ORDERS]
    memory = agent.presentation.remembers(condition.game)
    cells = [history_name(history, memory.num_moves) for history in memory.histories]
    asked = [
        {
            "remembered": cell,
            "answer": agent.presentation.labels[action],
            "question": question,
        }
        for cell, action in zip(cells, likeliest, strict=True)
        for question in QUESTIONS.values()
    ]
    tokens = [
        follow_up(prompter, texts[cells.index(one["remembered"])], one["answer"], one["question"])
        for one in asked
    ]
    found = []
    for name, adapter in (("tuned", trainable["adapter"]), ("base", {})):
        key, one_key = jax.random.split(key)
        said = generate(agent.model, tokens, NUM_TOKENS, one_key, Sampling(), adapter, policy.lora)
        for one, words in zip(asked, said, strict=True):
            text = prompter.tokenizer.decode(words).strip()
            found.append(one | {"policy": name, "said": text})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.ask",
        description="Asks a trained agent and its base why; the answers go to answers.json.",
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the words")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error("--seed must not be negative")
    run_command(lambda: _run(arguments.run, arguments.seed))


def _run(folder: Path, seed: int) -> None:
    use_compilation_cache()
    config, agent, trainable = load_run(folder)
    answers = ask(config, agent, trainable, jax.random.key(seed))
    path = folder / "answers.json"
    if path.is_file() and read_json(path) != answers:
        print(f"{path.name} held other answers; they are in {set_aside(path)} now")
    write_json(answers, path)
    for one in answers:
        print(f"{one['policy']}, after {one['remembered']}: {one['answer']}. {one['question']}")
        print("   ", " ".join(one["said"].split()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
