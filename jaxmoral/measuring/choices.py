"""Exact probabilities of the answers to many questions, base beside tuned, in few programs.

Questions are read in forests of at most so many tokens, whatever their number, and the forests are
padded to a few shapes: memory is bounded, and nothing is compiled for an item.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmoral.devices.mesh import place
from jaxmoral.errors import UserError
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.run_folder import Which
from jaxmoral.measuring.evaluation import group_by_size
from jaxmoral.measuring.forests import Forest, Place, Question, encode, padded, plant, reader, size
from jaxmoral.measuring.source import Loaded, Source, load_source, parameters
from jaxmoral.models.sizes import products

MOST_NODES = 2048  # of a forest, unless one item alone has more
MOST_SHAPES = 3
_NO_LIMIT = 10**9  # tokenizers that know no limit say a larger one

Encoded = list[tuple[Question, list[int]]]


def speaking(loaded: Loaded, what: str) -> tuple[LanguagePolicy, Prompter]:
    """The language policy and its prompter; raises UserError if the agent is a table."""
    policy, prompter = loaded.agent.policy, loaded.agent.prompter
    if not isinstance(policy, LanguagePolicy) or not isinstance(prompter, Prompter):
        raise UserError(f"{what}: a tabular policy has no language; it needs a model")
    return policy, prompter


def longest_prompt(prompter: Prompter) -> int:
    """How many tokens of one prompt are read."""
    limit = prompter.tokenizer.model_max_length
    return min(prompter.max_nodes, limit if limit < _NO_LIMIT else prompter.max_nodes)


def plant_all(prompter: Prompter, items: Sequence[Encoded]) -> list[tuple[list[int], Forest]]:
    """Packs items into forests of about the same size, each with the indices of its items.

    A forest's items are alike: their questions have the same labels, and about the same length.
    """
    costs = [sum(map(len, _distinct(questions))) for questions in items]
    labels = [tuple(question.labels for question, _ in questions) for questions in items]
    order = sorted(range(len(items)), key=lambda i: (labels[i], costs[i]))
    forests = []
    for kind in dict.fromkeys(labels[index] for index in order):
        alike = [index for index in order if labels[index] == kind]
        number = -(-sum(costs[index] for index in alike) // MOST_NODES)
        each = sum(costs[index] for index in alike) / number
        filled = np.cumsum([costs[index] for index in alike]) - 1
        parts: dict[int, list[int]] = {}
        for index, at in zip(alike, filled, strict=True):
            parts.setdefault(int(at // each), []).append(index)
        forests += [(part, plant(prompter, [items[i] for i in part])) for part in parts.values()]
    return forests


def _distinct(questions: Encoded) -> list[list[int]]:
    """About the tokens that questions do not share: each from where it leaves the one before."""
    found: list[list[int]] = []
    before: list[int] = []
    for ids in sorted(ids for _, ids in questions):
        shared = next(
            (at for at, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b),
            min(len(before), len(ids)),
        )
        found.append(ids[shared:])
        before = ids
    return found


def answer_all(loaded: Loaded, items: Sequence[Encoded]) -> dict[str, list[np.ndarray]]:
    """What each policy answers.

    Args:
      loaded: with a language policy.
      items: questions with their tokens (`forests.encode`).

    Returns:
      By policy, "base" first, for each item `[num_questions, most_labels + 1]` probabilities: those
      of the question's labels in their order, 0 for labels that it has not, and illegal.
    """
    policy, prompter = speaking(loaded, "choices")
    agent, policies = loaded.agent, parameters(loaded)
    most = max(len(question.labels) for questions in items for question, _ in questions)
    forests = plant_all(prompter, items)
    found: dict[str, list[np.ndarray]] = {name: [np.zeros(())] * len(items) for name in policies}
    with tqdm(total=len(items) * len(policies), desc="items", leave=False, disable=None) as bar:
        for group in group_by_size([_cost(agent, forest) for _, forest in forests], MOST_SHAPES):
            chosen = [forests[index] for index in group]
            room = size([forest for _, forest in chosen])
            for indices, forest in chosen:
                inputs = padded(forest, room, prompter)
                inputs = place(inputs, agent.layout.sharding())
                read = reader(policy, most, agent.layout)
                for name, trainable in policies.items():
                    log_probs = jax.device_get(read(agent.frozen, inputs, trainable))
                    for index, places in zip(indices, forest.places, strict=True):
                        found[name][index] = np.exp(_at(log_probs, places))
                    bar.update(len(indices))
    return found


def _at(log_probs: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    return np.stack([log_probs[place.group, place.row] for place in places])


def _cost(agent: Agent, forest: Forest) -> tuple[float, float]:
    assert agent.model is not None
    rows = sum(nodes.size for nodes in forest.nodes)
    return products(agent.model.config, len(forest.tree.tokens), rows)


def choose(
    source: Source, text: str, options: Sequence[str], *, update: Which = None
) -> dict[str, dict[str, float]]:
    """How likely a model is to answer a text by each of a few options, exactly.

    An option is written after the text, with or without a space before it, in at most as many
    tokens as it takes; all ways to spell it are summed. The text is a prompt as it is, or a turn of
    a chat if the configuration's `prompt.template` says so.

    Args:
      source: what `train_agent` returned, a run folder, or a configuration whose untrained model
        answers.
      text: what is asked.
      options: two or more, none the beginning of another.
      update: of a run folder's checkpoint; see `evaluate_agent`.

    Returns:
      For "base", and for "tuned" if there is one, the probability of each option and of "illegal":
      of anything else.

    Raises:
      UserError: the options cannot be told apart or spelled, or the agent is a table.

    >>> answers = jaxmoral.choose(jaxmoral.Config(), "Is water wet? Answer:", ["yes", "no"])
    >>> [round(sum(shares.values()), 3) for shares in answers.values()]
    [1.0]
    """
    labels = check_options(options)
    loaded = load_source(source, update)
    _, prompter = speaking(loaded, "choose")
    if not text.strip():
        raise UserError("choose: the text is empty")
    question = Question(text, labels)
    item = [(question, encode(prompter, question, longest_prompt(prompter)))]
    answers: dict[str, Any] = answer_all(loaded, [item])
    names = [*labels, "illegal"]
    return {
        policy: dict(zip(names, map(float, shares[0][0]), strict=True))
        for policy, shares in answers.items()
    }


def check_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options; raises UserError unless each can be told from the others."""
    if isinstance(options, str) or len(options) < 2:
        raise UserError(f"choose: needs two or more options, got {options!r}")
    for option in options:
        if not isinstance(option, str) or not option or option != option.strip():
            raise UserError(
                f"choose: needs texts without outer white space as options, got {option!r}"
            )
    for number, option in enumerate(options):
        for other in options[:number]:
            if option.startswith(other) or other.startswith(option):
                raise UserError(
                    f"choose: {other!r} and {option!r} cannot be told apart, one is the beginning"
                    " of the other; name them by labels"
                )
    if "illegal" in options:
        raise UserError("choose: 'illegal' is what is said of all other answers; rename the option")
    return tuple(options)
