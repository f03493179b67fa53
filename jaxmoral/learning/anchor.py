"""The anchor: a run's base writes a few texts of its own, and training keeps the agent at them.

The texts continue neutral beginnings (`language/openings.txt`), sampled once by the run's seed; a
run folder keeps them. In an update some of them are a packed tree of their own, whose loss is
KL(base || policy) at every token, exact over the vocabulary. The base does not change, so all that
is needed of its distributions (`vocabulary.Known`) is computed once as well.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.config import Config
from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout, place
from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.language import prompt_tree
from jaxmoral.language.prompt_tree import PromptTree, merge
from jaxmoral.language.thought_tree import paths
from jaxmoral.learning.agent import Agent
from jaxmoral.learning.collect import Collected
from jaxmoral.learning.language_policy import LanguagePolicy, PromptedModel
from jaxmoral.learning.losses import Metrics
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.run_folder import ANCHOR, run_folders
from jaxmoral.learning.state import TrainState, UpdateInputs, per_player
from jaxmoral.models.lora import prepare
from jaxmoral.models.sample import Branching, Prefixes, sample
from jaxmoral.models.vocabulary import Known

PyTree = Any
OPENINGS = Path(prompt_tree.__file__).parent / "openings.txt"
LONGEST = 32  # tokens of a text behind its opening
_KEY = 2**31 - 1  # folded into the seed's key


class Spoken(NamedTuple):
    """What a base said: token ids of how each text was opened, and of what it wrote behind that."""

    openings: list[list[int]]
    continuations: list[list[int]]


class Texts(NamedTuple):
    """Some of the texts as an update reads them; leaves have a leading axis of such parts.

    Attributes:
      tree: the packed texts.
      beside: what layers look up of its tokens, or None.
      nodes: `[num_rows]` int32, where the base's tokens are predicted.
      weight: `[num_rows]` of each; over all parts they add up to the number of parts.
    """

    tree: PromptTree
    beside: np.ndarray | None
    nodes: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array


class Anchor(NamedTuple):
    """What an update reads of an anchor.

    Attributes:
      coef: `[]`, the weight of its KL.
      texts: in parts, of which an update reads one.
      base: what the base says at the texts' nodes, likewise.
    """

    coef: np.ndarray | jax.Array
    texts: Texts
    base: Known


class Sizes(NamedTuple):
    """How many texts there are and an update reads, and the most tokens behind an opening."""

    number: int
    at_once: int
    length: int


def sizes(config: Config) -> Sizes:
    """An anchor's sizes; the number is a multiple of that of an update."""
    asked = config.anchor
    number = -(-asked.tokens // LONGEST)
    length = -(-asked.tokens // number)
    at_once = min(max(round(asked.at_once / length), 1), number)
    return Sizes(-(-number // at_once) * at_once, at_once, length)


def openings() -> list[str]:
    """The beginnings of texts, alternating in kind."""
    _, texts = OPENINGS.read_text(encoding="utf-8").split("\n\n")  # what the file is for is first
    return texts.splitlines()


def speak(config: Config, agent: Agent) -> Spoken:
    """What the agent's base writes; of a chat model, what it answers to the openings."""
    policy, prompter = agent.policy, agent.prompter
    assert isinstance(policy, LanguagePolicy)
    assert isinstance(prompter, Prompter)
    assert agent.model is not None
    number, _, length = sizes(config)
    texts = openings()[:number]
    opened = [prompter.unopened(text) for text in texts]
    tree, last = merge(opened)
    longest = max(map(len, opened))
    prefixes = Prefixes(
        prompt_tree.pad(tree, len(tree.tokens), longest - 1, prompter.multiple),
        paths(tree, last, longest),
        np.array([len(ids) for ids in opened], np.int32),
    )
    how = Branching(-(-number // len(texts)), length, (), policy.max_logits)
    key = jax.random.fold_in(jax.random.key(config.seed), _KEY)
    frozen, shown = agent.frozen, place(prefixes, agent.layout.sharding())
    tokens = jax.device_get(_speaker(policy, how, agent.layout)(frozen, shown, key))
    tokens = np.moveaxis(tokens, 1, 0).reshape(-1, length)[:number]  # each text once, then again
    stops = agent.model.stop_tokens()
    openers = [opened[index % len(opened)] for index in range(number)]
    return Spoken(openers, [_until(row.tolist(), stops) for row in tokens])


def _until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """A text up to the first token that ends it, which it keeps."""
    ends = [at for at, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


@functools.cache
def _speaker(policy: LanguagePolicy, how: Branching, layout: Layout) -> Any:
    def write(frozen: PyTree, prefixes: Prefixes, key: jax.Array) -> jax.Array:
        model = policy.reading(frozen).model()
        adapter = prepare(
            policy.reference_parameters()["adapter"], policy.config, policy.lora, None
        )
        return sample(model, adapter, prefixes, key, how, policy.beside)[0]

    return jit_often(write, layout)


def pack(spoken: Spoken, sizes: Sizes, prompter: Prompter) -> Texts:
    """The texts in parts, all of one shape whatever was written; `beside` is not looked up yet."""
    whole = [[*a, *b] for a, b in zip(spoken.openings, spoken.continuations, strict=True)]
    starts = range(0, len(whole), sizes.at_once)
    merged = [merge(spoken.openings[start : start + sizes.at_once])[0] for start in starts]
    room = max(len(tree.tokens) for tree in merged) + sizes.at_once * sizes.length
    depth = max(map(len, spoken.openings)) + sizes.length - 1
    trees = []
    nodes = np.zeros((len(starts), sizes.at_once, sizes.length), np.int32)
    counted = np.zeros(nodes.shape, np.float32)
    for part, start in enumerate(starts):
        own = slice(start, start + sizes.at_once)
        tree, last = merge(whole[own])
        trees.append(prompt_tree.pad(tree, room, depth, prompter.multiple))
        walks = paths(tree, last, depth + 1)
        for index, number in enumerate(range(len(whole))[own]):
            before, written = len(spoken.openings[number]) - 1, len(spoken.continuations[number])
            nodes[part, index, :written] = walks[index, before : before + written]
            counted[part, index, :written] = 1
    by_part = lambda leaf: leaf.reshape(len(starts), -1)
    weight = counted * np.float32(len(starts) / counted.sum())
    tree = PromptTree(*map(np.stack, zip(*trees, strict=True)))
    return Texts(tree, None, by_part(nodes), by_part(weight))


def make_anchor(config: Config, agent: Agent) -> Anchor:
    """A run's anchor, of the texts that the agent has kept or of new ones."""
    policy, prompter = agent.policy, agent.prompter
    assert isinstance(policy, LanguagePolicy)
    assert isinstance(prompter, Prompter)
    spoken = agent.spoken or speak(config, agent)
    texts = pack(spoken, sizes(config), prompter)
    texts = texts._replace(beside=prompter.beside(texts.tree.tokens))
    shown = place(texts, agent.layout.sharding())
    base = _knower(policy, agent.layout)(agent.frozen, shown)
    return Anchor(np.array(config.anchor.coef, np.float32), texts, jax.device_get(base))


@functools.cache
def _knower(policy: LanguagePolicy, layout: Layout) -> Any:
    def know(frozen: PyTree, texts: Texts) -> Known:
        def know_part(part):
            model = policy.reading(frozen)
            hidden = model.before(policy.reference_parameters(), part.tree, part.nodes, part.beside)
            return model.model().know(hidden, policy.max_logits, compared=True)

        return jax.lax.map(know_part, texts)

    return jit_often(know, layout)


def distance(model: PromptedModel, trainable: PyTree, part: Texts, base: Known) -> jax.Array:
    """KL(base || policy) in nats a token over a part of the texts, `[]`."""
    decoder, max_logits = model.model(), model.policy.max_logits
    hidden = model.before(trainable, part.tree, part.nodes, part.beside)
    log_sums = decoder.log_sum_exp(hidden[:, None], max_logits)[:, 0]
    return jnp.sum(part.weight * decoder.divergence(base, (hidden, log_sums), max_logits))


def anchored(
    collected: Collected, state: TrainState, inputs: UpdateInputs, policy: Any
) -> Collected:
    """What an update's gradient steps start from, with the distance to the base in their loss."""
    anchor = inputs.anchor
    number = len(anchor.texts.weight)
    part, base = jax.tree.map(lambda leaf: leaf[state.update % number], anchor[1:])
    model = policy.reading(inputs.frozen)

    def apart(trainable: PyTree) -> jax.Array:
        return per_player(lambda own: distance(model, own, part, base), trainable)

    def read(trainable: PyTree, dropout_keys: jax.Array | None) -> PyTree:
        return collected.read(trainable, dropout_keys), apart(trainable)

    def differentiate(reading: PyTree, batch: PyTree) -> tuple[PyTree, Metrics]:
        own, kl = reading
        gradient, parts = collected.differentiate(own, batch)
        loss = parts["loss"] + anchor.coef * kl
        coefs = jnp.broadcast_to(anchor.coef, kl.shape)
        return (gradient, coefs), parts | {"loss": loss, "anchor_kl": kl}

    behaviour = None
    if collected.behaviour is not None:
        reading, pull = collected.behaviour
        kl, pull_apart = jax.vjp(apart, state.players.trainable)

        def pull_both(gradients: PyTree) -> tuple[PyTree]:
            own, coefs = gradients
            return (jax.tree.map(jnp.add, *pull(own), *pull_apart(coefs)),)

        behaviour = (reading, kl), pull_both
    return dataclasses.replace(
        collected, read=read, behaviour=behaviour, differentiate=differentiate
    )


def with_texts(
    members: Mapping[str, Config], agents: Mapping[str, Agent], folder: Path | None
) -> dict[str, Agent]:
    """The members' agents with what their base said, if they are anchored.

    Args:
      members, agents: by name.
      folder: of the run or the population if it goes on; None begins anew.

    Raises:
      UserError: what a run that goes on has kept cannot be read.
    """
    if not any(config.anchor.coef for config in members.values()):
        return dict(agents)
    if folder is not None:
        homes = run_folders(folder, list(members))
        said = {name: read_spoken(homes[name], config) for name, config in members.items()}
    else:
        seeds = {config.seed: name for name, config in members.items()}
        by_seed = {seed: speak(members[name], agents[name]) for seed, name in seeds.items()}
        said = {name: by_seed[config.seed] for name, config in members.items()}
    return {name: agent._replace(spoken=said[name]) for name, agent in agents.items()}


def write_texts(agents: Mapping[str, Agent], folder: Path) -> None:
    """Keeps what members are anchored to in their run folders."""
    for name, home in run_folders(folder, list(agents)).items():
        if agents[name].spoken is not None:
            write_spoken(home, agents[name])


def write_spoken(folder: Path, agent: Agent) -> None:
    """Keeps a run's texts, token by token and as people read them."""
    assert isinstance(agent.prompter, Prompter)
    spoken, decode = agent.spoken, agent.prompter.tokenizer.decode
    texts = [decode([*a, *b]) for a, b in zip(*spoken, strict=True)]
    with replacing(folder / ANCHOR) as scratch:
        scratch.write_text(
            json.dumps(spoken._asdict() | {"texts": texts}, ensure_ascii=False), encoding="utf-8"
        )


def read_spoken(folder: Path, config: Config) -> Spoken:
    """A run's texts; raises UserError if they are gone or others than it began with."""
    path = folder / ANCHOR
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        spoken = Spoken(found["openings"], found["continuations"])
        whole = [*spoken.openings, *spoken.continuations]
        usable = {len(part) for part in spoken} == {sizes(config).number} and all(
            ids and all(type(token) is int and token >= 0 for token in ids) for ids in whole
        )
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}), the run's anchor") from None
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise UserError(f"{path} is damaged; it must hold what the run is anchored to")
    return spoken
