"""Policies: what maps parameters to the response distribution of every prompt, a `PolicyTable`.

A policy holds only static facts. Its arrays travel as arguments: `frozen` (never trained), `inputs`
(the prompts of one game; those of several games are stacked on a leading axis) and `trainable`.
The trainer and the evaluation do not know which policy they have.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmoral import prompts
from jaxmoral.errors import UserError
from jaxmoral.games import Game
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.load import LoadedModel
from jaxmoral.gemma.lora import Lora, init_adapter, prepare
from jaxmoral.gemma.tokenizer import byte_pieces
from jaxmoral.prompt_tree import PromptTree, ancestor_mask, pack, pad
from jaxmoral.responses import Responses, outcome_log_probs, spell

PyTree = Any


class PolicyTable(NamedTuple):
    """All there is to know about an agent in one game.

    Attributes:
      log_probs: `[num_prompts, 3]` float32, log-probabilities of C, D and illegal.
      values: `[num_prompts]` float32, the value head's estimates.
    """

    log_probs: jax.Array
    values: jax.Array


class Policy(Protocol):
    """The interface every policy has."""

    @property
    def dropout(self) -> bool:
        """Whether `apply` uses its dropout key."""

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters that leave the reference policy as it is."""

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        """The policy on the prompts of one game; no dropout without a key."""

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        """The untrained policy's log-probabilities, `[num_prompts, 3]`."""


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """Free logits and a free value per prompt; its reference is uniform over the outcomes."""

    num_prompts: int = prompts.NUM_PROMPTS
    dropout: bool = False

    def init(self, key: jax.Array) -> PyTree:
        return {"logits": jnp.zeros((self.num_prompts, 3)), "values": jnp.zeros(self.num_prompts)}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        return PolicyTable(jax.nn.log_softmax(trainable["logits"]), trainable["values"])

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        return jnp.full((self.num_prompts, 3), -jnp.log(3.0))

    def inputs(self, games: Sequence[Game]) -> jax.Array:
        """A policy over remembered rounds plays every game alike: `[num_games, 0]`."""
        return np.zeros((len(games), 0), np.float32)


class PromptInputs(NamedTuple):
    """The packed prompts of a game, with the legal responses' inner nodes.

    Attributes:
      tree: the packed tokens.
      nodes: `[num_prompts, num_prefixes]` int32, where each partial response ends; column 0 is
        the prompt's last token.
    """

    tree: PromptTree
    nodes: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class GemmaPolicy:
    """Gemma with LoRA and a linear value head on the last hidden state of each prompt."""

    config: GemmaConfig
    definition: nnx.GraphDef
    lora: Lora
    responses: Responses
    remat: bool = False

    @property
    def dropout(self) -> bool:
        return self.lora.dropout > 0

    def init(self, key: jax.Array) -> PyTree:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        return {"adapter": init_adapter(key, self.config, self.lora), "value_head": head}

    def apply(
        self, frozen: PyTree, inputs: PyTree, trainable: PyTree, dropout_key: jax.Array | None
    ) -> PolicyTable:
        chex.assert_rank(inputs.nodes, 2)
        tree = inputs.tree
        model = nnx.merge(self.definition, frozen)
        mask = (ancestor_mask(tree, self.config.sliding_window), ancestor_mask(tree))
        adapter = prepare(trainable["adapter"], self.config, self.lora, dropout_key)
        hidden = model.hidden(tree.tokens, tree.positions, mask, adapter, self.remat)
        rows = hidden[inputs.nodes]
        log_probs = outcome_log_probs(model.logits(rows), self.responses)
        head = trainable["value_head"]
        values = rows[:, 0].astype(jnp.float32) @ head["kernel"] + head["bias"]
        return PolicyTable(log_probs, values)

    def reference(self, frozen: PyTree, inputs: PyTree) -> jax.Array:
        head = {"kernel": jnp.zeros(self.config.embed_dim), "bias": jnp.zeros(())}
        no_adapter: PyTree = {"adapter": {}, "value_head": head}
        return self.apply(frozen, inputs, no_adapter, None).log_probs


class Prompter:
    """Turns games into packed token trees for one tokenizer, one pair of labels, one template."""

    def __init__(self, model: LoadedModel, labels: Sequence[str], template: str):
        """Args:
          model: whose tokenizer is used.
          labels: of C and D.
          template: "plain" or "chat".

        Raises:
          UserError: the labels cannot be told apart or spelled, or the tokenizer has no chat
            template.
        """
        self.tokenizer = model.tokenizer
        self.labels = prompts.check_labels(labels)
        self.template = template
        if template == "chat" and not self.tokenizer.chat_template:
            raise UserError(
                f"prompt.template: {model.source} has no chat template; use --prompt.template plain"
            )
        encode = lambda label: self.tokenizer.encode(label, add_special_tokens=False)
        budget = max(len(encode(label)) for label in self.labels)
        stops = {self.tokenizer.eos_token_id, _turn_end(self.tokenizer)} - {None}
        try:
            self.responses = spell(
                [label.encode() for label in self.labels],
                byte_pieces(self.tokenizer),
                sorted(stops),
                budget,
            )
        except ValueError as error:
            raise UserError(f"prompt.labels: {error}") from error

    def tokens(self, text: str) -> list[int]:
        """The token ids of one prompt, with exactly one BOS."""
        if self.template == "chat":
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        ids = self.tokenizer.encode(text, add_special_tokens=self.template == "plain")
        if ids.count(self.tokenizer.bos_token_id) != 1:
            raise ValueError(f"a prompt needs exactly one BOS token, got {ids[:4]}...")
        return ids

    def sequences(self, game: Game) -> list[list[int]]:
        """The prompts of a game, each followed by every partial response, prompt by prompt."""
        encoded = [self.tokens(text) for text in prompts.all_prompts(game, self.labels)]
        return [[*ids, *prefix] for ids in encoded for prefix in self.responses.prefixes]

    def inputs(self, games: Sequence[Game]) -> PromptInputs:
        """The packed prompts of several games, stacked on a leading axis and padded alike."""
        packed = [pack(self.sequences(game)) for game in games]
        size = max(len(tree.tokens) for tree, _ in packed)
        trees = [pad(tree, size) for tree, _ in packed]
        nodes = [last.reshape(-1, len(self.responses.prefixes)) for _, last in packed]
        return PromptInputs(PromptTree(*map(np.stack, zip(*trees, strict=True))), np.stack(nodes))


def _turn_end(tokenizer) -> int | None:
    token = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    return None if token == tokenizer.unk_token_id else token
