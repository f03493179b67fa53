"""What an agent says when it is asked about its answers (arXiv 2410.01639, Fig. 27)."""

from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import QUESTIONS, Condition, all_prompts
from jaxmoral.learning.agent import Agent, policy_table
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.prompter import Prompter
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.world.memory import NUM_ORDERS, history_name

NUM_TOKENS = 100  # of an explanation


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
    if agent.model is None or agent.lora is None:
        raise UserError("a tabular policy has no words")
    condition = Condition(training_game(config), agent.presentation)
    table = policy_table(agent, condition, trainable)
    likeliest = np.asarray(table.log_probs)[::NUM_ORDERS, :2].argmax(-1)
    shown = config.prompt
    prompter = Prompter(agent.model, shown.template, thinking=shown.thinking)
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
        said = generate(agent.model, tokens, NUM_TOKENS, one_key, Sampling(), adapter, agent.lora)
        for one, words in zip(asked, said, strict=True):
            text = prompter.tokenizer.decode(words).strip()
            found.append(one | {"policy": name, "said": text})
    return found
