"""From a configuration to an agent: its policy, its frozen arrays and its packed prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral import prompts
from jaxmoral.config import Config
from jaxmoral.errors import UserError
from jaxmoral.games import Game, get_game
from jaxmoral.gemma.load import LoadedModel, load
from jaxmoral.gemma.lora import Lora
from jaxmoral.gemma.peft import load_peft
from jaxmoral.gemma.sizes import activation_bytes, num_adapter_parameters, num_parameters
from jaxmoral.gemma.tokenizer import byte_pieces
from jaxmoral.policy import GemmaPolicy, Policy, PromptInputs, TabularPolicy
from jaxmoral.prompt_tree import PromptTree, pack, pad
from jaxmoral.responses import spell


class Agent(NamedTuple):
    """A policy with the arrays it needs.

    Attributes:
      policy: static.
      frozen: arrays that are never trained.
      inputs: packs the prompts of several games, stacked on a leading axis.
      summary: lines that say what it is, for people.
      model: what the policy was loaded from, or None for a tabular one.
      adapter: LoRA weights to start from instead of fresh ones, or None.
    """

    policy: Policy
    frozen: Any
    inputs: Callable[[Sequence[Game]], Any]
    summary: list[str]
    model: LoadedModel | None = None
    adapter: Any = None

    def start(self, trainable: Any) -> Any:
        """Fresh parameters with the agent's own adapter in them, if it has one."""
        return trainable if self.adapter is None else trainable | {"adapter": self.adapter}


class Prompter:
    """Turns games into packed token trees for one tokenizer, one pair of labels, one template."""

    def __init__(self, model: LoadedModel, labels: Sequence[str], template: str):
        """Enumerates the legal responses.

        Args:
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
        try:
            self.responses = spell(
                [label.encode() for label in self.labels],
                byte_pieces(self.tokenizer),
                model.stop_tokens(),
                budget,
            )
        except ValueError as error:
            raise UserError(f"prompt.labels: {error}") from error

    def tokens(self, text: str) -> list[int]:
        """The token ids of one prompt, with exactly one BOS."""
        if self.template == "chat":
            return self.conversation([{"role": "user", "content": text}])
        return self._encode(text)

    def conversation(self, turns: list[dict[str, str]]) -> list[int]:
        """The token ids of a chat up to the model's next turn, with exactly one BOS."""
        return self._encode(
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def _encode(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token
        ids = self.tokenizer.encode(text, add_special_tokens=not text.startswith(bos))
        if ids.count(self.tokenizer.bos_token_id) != 1 or ids[0] != self.tokenizer.bos_token_id:
            raise ValueError(f"a prompt must begin with its only BOS token, got {ids[:4]}...")
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


def make_agent(config: Config) -> Agent:
    """Builds the agent a configuration asks for; `config.model.dtype` must be resolved.

    Raises:
      UserError: the model or the labels cannot be used.
    """
    if config.model.source == "tabular":
        if config.lora.adapter is not None:
            raise UserError("lora.adapter: a tabular policy has no adapter")
        tabular = TabularPolicy()
        summary = [f"policy     tabular: {tabular.num_prompts} prompts x 3 outcomes, all trained"]
        return Agent(tabular, (), tabular.inputs, summary)
    base = config.model
    quantisation = None if base.quantisation == "none" else base.quantisation
    model = load(base.source, base.dtype, base.sha256, quantisation)
    prompter = Prompter(model, config.prompt.labels, config.prompt.template)
    settings = config.lora
    lora = Lora(
        settings.rank,
        settings.alpha,
        settings.dropout,
        settings.targets,
        settings.rank_stabilised,
    )
    adapter = None
    if settings.adapter is not None:
        adapter, lora = load_peft(Path(settings.adapter), model.config, settings.dropout)
    policy = GemmaPolicy(
        model.config, model.definition, lora, prompter.responses, config.model.remat
    )
    summary = _summary(config, model, policy, prompter)
    return Agent(policy, model.weights, prompter.inputs, summary, model, adapter)


def settle(config: Config, agent: Agent) -> Config:
    """The configuration with what only the model's and the adapter's files could tell."""
    model = config.model
    if agent.model:
        model = dataclasses.replace(model, source=agent.model.source, sha256=agent.model.sha256)
    lora = config.lora
    if isinstance(agent.policy, GemmaPolicy):
        lora = dataclasses.replace(lora, **dataclasses.asdict(agent.policy.lora))
    return dataclasses.replace(config, model=model, lora=lora)


def _summary(
    config: Config, model: LoadedModel, policy: GemmaPolicy, prompter: Prompter
) -> list[str]:
    game = get_game(config.env.game)
    sequences = prompter.sequences(game)
    prefixes = len(policy.responses.prefixes)
    longest = max(len(sequence) for sequence in sequences[::prefixes])
    flat = sum(len(sequence) for sequence in sequences[::prefixes])
    nodes = len(pack(sequences)[0].tokens)
    parameters = num_parameters(model.config)
    adapter = num_adapter_parameters(model.config, policy.lora)
    head = model.config.embed_dim + 1
    frozen = jax.tree.leaves(model.weights)
    kind: str = config.model.dtype
    if model.config.quantisation:
        kind = f"{model.config.quantisation} dequantised to {kind}"
    itemsize = 4 if config.model.dtype == "float32" else 2
    rows = len(sequences)
    activations = activation_bytes(model.config, nodes, rows, itemsize, config.model.remat)
    # A trained parameter comes with its gradient and two moments of Adam.
    memory = sum(leaf.nbytes for leaf in frozen) + 16 * (adapter + head) + activations
    return [
        f"model      {config.model.source}: {parameters / 1e6:.1f} M parameters, {kind}, frozen",
        f"trained    LoRA rank {policy.lora.rank} on {' '.join(policy.lora.targets)}:"
        f" {adapter:,} parameters; value head: {head:,}",
        f"prompts    {len(sequences) // prefixes} of up to {longest} tokens;"
        f" one tree of {nodes} nodes instead of {flat:,} tokens",
        f"memory     about {memory / 2**30:.1f} GiB for weights, optimiser and activations",
    ]
