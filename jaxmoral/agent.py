"""From a configuration to an agent: its policy, its frozen arrays and its packed prompts."""

import dataclasses
import string
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
from jaxmoral.prompts import Presentation
from jaxmoral.responses import Responses, spell, stack


class Condition(NamedTuple):
    """A game as it is put to the agent."""

    game: Game
    presentation: Presentation

    @property
    def key(self) -> tuple[str, Presentation]:
        """What tells two conditions with registered games apart."""
        return self.game.name, self.presentation


class Agent(NamedTuple):
    """A policy with the arrays it needs.

    Attributes:
      policy: static.
      frozen: arrays that are never trained.
      inputs: packs the prompts of several conditions, stacked on a leading axis.
      presentation: in which it is trained; files read in, random labels drawn.
      summary: lines that say what it is, for people.
      model: what the policy was loaded from, or None for a tabular one.
      adapter: LoRA weights to start from instead of fresh ones, or None.
    """

    policy: Policy
    frozen: Any
    inputs: Callable[[Sequence[Condition]], Any]
    presentation: Presentation
    summary: list[str]
    model: LoadedModel | None = None
    adapter: Any = None


class Prompter:
    """Turns conditions into packed token trees for one tokenizer and one chat template."""

    def __init__(self, model: LoadedModel, template: str):
        """Raises UserError if the template is "chat" and the tokenizer has none."""
        self.tokenizer = model.tokenizer
        self.template = template
        self._pieces = byte_pieces(self.tokenizer)
        self._stop_tokens = model.stop_tokens()
        self._responses: dict[tuple[str, str], Responses] = {}
        if template == "chat" and not self.tokenizer.chat_template:
            raise UserError(
                f"prompt.template: {model.source} has no chat template; use --prompt.template plain"
            )

    def responses(self, labels: tuple[str, str]) -> Responses:
        """Every legal response; raises UserError if the labels cannot be spelled."""
        if labels not in self._responses:
            encoded = [self.tokenizer.encode(label, add_special_tokens=False) for label in labels]
            pieces = list(self._pieces)
            for label, tokens in zip(labels, encoded, strict=True):
                if len(tokens) == 1 and tokens[0] not in self._stop_tokens:
                    pieces[tokens[0]] = label.encode()  # an unused control token is a label too
            budget = max(map(len, encoded))
            try:
                self._responses[labels] = spell(
                    [label.encode() for label in labels], pieces, self._stop_tokens, budget
                )
            except ValueError as error:
                raise UserError(f"labels {'/'.join(labels)}: {error}") from error
        return self._responses[labels]

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

    def sequences(self, condition: Condition) -> list[list[int]]:
        """The prompts of a condition, each followed by every partial response."""
        encoded = [self.tokens(text) for text in prompts.all_prompts(*condition)]
        prefixes = self.responses(condition.presentation.labels).prefixes
        return [[*ids, *prefix] for ids in encoded for prefix in prefixes]

    def inputs(self, conditions: Sequence[Condition]) -> PromptInputs:
        """The packed prompts of several conditions, stacked on a leading axis and padded alike."""
        responses = [self.responses(condition.presentation.labels) for condition in conditions]
        sequences = [self.sequences(condition) for condition in conditions]
        packed = [pack(branches) for branches in sequences]
        size = max(len(tree.tokens) for tree, _ in packed)
        trees = [pad(tree, size) for tree, _ in packed]
        width = max(len(spelled.prefixes) for spelled in responses)
        nodes = []
        for (_, last), spelled in zip(packed, responses, strict=True):
            own = last.reshape(-1, len(spelled.prefixes))
            # What pads the rows is never reached; see `responses.stack`.
            nodes.append(np.pad(own, ((0, 0), (0, width - own.shape[1])), mode="edge"))
        # The first partial response is the empty one.
        alone = [
            branches[:: len(spelled.prefixes)]
            for branches, spelled in zip(sequences, responses, strict=True)
        ]
        lengths = np.array([[len(tokens) for tokens in each] for each in alone], np.int32)
        tokens = np.zeros((*lengths.shape, lengths.max()), np.int32)
        for index in np.ndindex(*lengths.shape):
            tokens[index][: lengths[index]] = alone[index[0]][index[1]]
        return PromptInputs(
            tree=PromptTree(*map(np.stack, zip(*trees, strict=True))),
            nodes=np.stack(nodes),
            trie=stack([spelled.trie for spelled in responses]),
            tokens=tokens,
            lengths=lengths,
        )


def random_labels(model: LoadedModel, num_tokens: int, seed: int) -> tuple[str, str]:
    """Two different strings of letters and digits, each of so many tokens."""
    random = np.random.default_rng([seed, num_tokens])
    characters = list(string.ascii_letters + string.digits)
    labels: list[str] = []
    while len(labels) < 2:
        label = "".join(random.choice(characters, num_tokens))
        tokens = model.tokenizer.encode(label, add_special_tokens=False)
        if len(tokens) == num_tokens and label not in labels:
            labels.append(label)
    return labels[0], labels[1]


def make_presentation(config: Config, model: LoadedModel | None) -> Presentation:
    """How the configuration's prompts look; files are read, random labels drawn."""
    prompt = config.prompt
    labels = prompt.labels
    if prompt.random_labels:
        if model is None:
            raise UserError("prompt.random_labels: a tabular policy has no tokens to draw from")
        labels = random_labels(model, prompt.random_labels, config.seed)
    return prompts.check(Presentation(prompt.wording, prompt.persona, labels, prompt.table_order))


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
        # A policy over remembered rounds plays every game alike.
        inputs = lambda conditions: np.zeros((len(conditions), 0), np.float32)
        return Agent(tabular, (), inputs, make_presentation(config, None), summary)
    base = config.model
    quantisation = None if base.quantisation == "none" else base.quantisation
    model = load(base.source, base.dtype, base.sha256, quantisation)
    prompter = Prompter(model, config.prompt.template)
    presentation = make_presentation(config, model)
    prompter.responses(presentation.labels)
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
    policy = GemmaPolicy(model.config, model.definition, lora, config.model.remat)
    condition = Condition(get_game(config.env.game), presentation)
    summary = _summary(config, model, policy, prompter, condition)
    return Agent(policy, model.weights, prompter.inputs, presentation, summary, model, adapter)


def settle(config: Config, agent: Agent) -> Config:
    """The configuration with what only the model's and the adapter's files could tell."""
    model = config.model
    if agent.model:
        model = dataclasses.replace(model, source=agent.model.source, sha256=agent.model.sha256)
    lora = config.lora
    if isinstance(agent.policy, GemmaPolicy):
        lora = dataclasses.replace(lora, **dataclasses.asdict(agent.policy.lora))
    wording, persona, labels, _ = agent.presentation
    prompt = dataclasses.replace(
        config.prompt, wording=wording, persona=persona, labels=labels, random_labels=0
    )
    return dataclasses.replace(config, model=model, lora=lora, prompt=prompt)


def _summary(
    config: Config,
    model: LoadedModel,
    policy: GemmaPolicy,
    prompter: Prompter,
    condition: Condition,
) -> list[str]:
    sequences = prompter.sequences(condition)
    prefixes = len(prompter.responses(condition.presentation.labels).prefixes)
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
