"""What an agent says when it is asked about its answers (arXiv 2410.01639, Fig. 27)."""

from typing import Any

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import QUESTIONS, Condition
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.speller import Speller
from jaxmoral.measuring.aloud import think_aloud
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.world.memory import NUM_ORDERS

NUM_TOKENS = 100  # of an explanation
_THOUGHTS = 2**31  # folded into the key, which is split for the answers


def follow_up(
    speller: Speller, text: str, answer: str, question: str, *, before: str = ""
) -> list[int]:
    """Tokens of the prompt, the agent's answer to it and a question about that answer.

    Args:
      speller: of prompts without thoughts.
      text: of the prompt.
      answer, question: texts.
      before: what comes between prompt and answer; see `aloud.Spoken`.
    """
    if speller.template == "plain":
        asked = f"{text}{before} {answer}\n\n{question}"
        return speller.tokens(f"{asked}\nAnswer: I chose {answer} because")
    turns = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": f"{before} {answer}".strip()},
        {"role": "user", "content": question},
    ]
    return speller.conversation(turns)


def ask(config: Config, agent: Agent, trainable: Any, key: jax.Array) -> list[dict[str, str]]:
    """Asks a trained agent and its base about the agent's likeliest answers in the training game.

    Returns:
      One record per remembered round, question and policy: "remembered" (the agent's move first),
      "answer", "question", "policy" and what is "said", at most 100 sampled tokens. With an agent
      that thinks, "thought" is that of its thoughts after which the answer is likeliest.

    Raises:
      UserError: the agent is a table.
    """
    if agent.model is None or agent.lora is None:
        raise UserError("a tabular policy has no words")
    condition = Condition(training_game(config), agent.presentation)
    spoken = think_aloud(agent, condition, trainable, jax.random.fold_in(key, _THOUGHTS))
    probs = np.exp(spoken.answers[::NUM_ORDERS])  # of each history in one order
    likeliest = probs.mean(1)[:, :2].argmax(-1)
    chosen = [rows[:, action].argmax() for rows, action in zip(probs, likeliest, strict=True)]
    shown = config.prompt
    speller = Speller(agent.model, shown.template, switch=shown.thinking)
    texts = agent.prompter.texts(condition)[::NUM_ORDERS]
    cells = agent.presentation.remembers(condition.game).names
    asked, tokens = [], []
    for index, (cell, action, own) in enumerate(zip(cells, likeliest, chosen, strict=True)):
        answer, prompt = agent.presentation.labels[action], index * NUM_ORDERS
        thinks = {} if spoken.thoughts is None else {"thought": spoken.thoughts[prompt][own]}
        before = spoken.before[prompt][own]
        for question in QUESTIONS.values():
            asked.append({"remembered": cell, **thinks, "answer": answer, "question": question})
            tokens.append(follow_up(speller, texts[index], answer, question, before=before))
    found = []
    for name, adapter in (("tuned", trainable["adapter"]), ("base", {})):
        key, one_key = jax.random.split(key)
        said = generate(agent.model, tokens, NUM_TOKENS, one_key, Sampling(), adapter, agent.lora)
        for one, words in zip(asked, said, strict=True):
            text = speller.tokenizer.decode(words).strip()
            found.append(one | {"policy": name, "said": text})
    return found
