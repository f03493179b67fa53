"""From a configuration to an agent: its policy, its frozen arrays and its packed prompts."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.config import Config
from jaxmoral.config.states import Resolved, Settled
from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout, make_layout
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.channel import make_thinking
from jaxmoral.learning.footprint import Footprint, footprint, free_bytes, round_bytes, shortage
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.mixture import (
    every_condition,
    player_conditions,
    presentation_with,
    without_points,
)
from jaxmoral.learning.policy import Policy, PolicyTable
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.run_folder import (
    check_no_population,
    is_run,
    named_checkpoint,
    read_config,
)
from jaxmoral.learning.speller import random_labels
from jaxmoral.learning.tabular_policy import TablePrompter, TabularPolicy
from jaxmoral.learning.thinking_policy import ThinkingPolicy
from jaxmoral.models.load import LoadedModel, Opened, open_model, same_base, same_model
from jaxmoral.models.lora import Lora
from jaxmoral.models.peft import at_revision, load_peft
from jaxmoral.models.sizes import num_adapter_parameters, num_parameters, weight_bytes
from jaxmoral.world.games import drawn_points
from jaxmoral.world.memory import NUM_ORDERS


class Agent(NamedTuple):
    """A policy with the arrays it needs.

    Attributes:
      policy: static.
      frozen: arrays that are never trained.
      prompter: packs prompts.
      presentation: in which it is trained; files read in, random labels drawn.
      summary: lines that say what it is, for people.
      model: what the policy was loaded from, or None for a tabular one.
      lora: how the model is adapted, or None.
      adapter: LoRA weights to start from instead of fresh ones, or None; those of a run are put in
        by `starting.start_from`.
      spoken: texts of the base that a run has kept for its anchor, or None.
      layout: the mesh its arrays are on.
    """

    policy: Policy
    frozen: Any
    prompter: Prompter | TablePrompter
    presentation: Presentation
    summary: list[str]
    layout: Layout
    model: LoadedModel | None = None
    lora: Lora | None = None
    adapter: Any = None
    spoken: Any = None


def packed_prompts(agent: Agent, condition: Condition) -> Any:
    """A condition's prompts as the agent's policy reads them."""
    return jax.tree.map(lambda x: x[0], agent.prompter.pack([[condition]]))


def policy_table(agent: Agent, condition: Condition, trainable: Any) -> PolicyTable:
    """What an agent with these parameters says in one condition."""
    read = _jit_read(agent.policy, agent.layout)
    return read(agent.frozen, packed_prompts(agent, condition), trainable)


@functools.lru_cache(maxsize=32)
def _jit_read(policy: Policy, layout: Layout) -> Any:
    def read(frozen: Any, prompts: Any, trainable: Any) -> PolicyTable:
        return policy.bind(frozen, prompts).table(trainable)

    return jit_often(read, layout)


def drawable_points(config: Config) -> tuple[float, ...]:
    """Every number that drawn payoffs can be; none if nothing is drawn."""
    if not config.env.payoff_draws:
        return ()
    return drawn_points(training_game(config), *config.env.payoff_range)


def make_presentation(config: Config, model: LoadedModel | None) -> Presentation:
    """How the configuration's prompts look; files are read, random labels drawn."""
    prompt = config.prompt
    labels = prompt.labels
    if prompt.random_labels:
        if model is None:
            raise UserError("prompt.random_labels: a tabular policy has no tokens to draw from")
        labels = random_labels(model, prompt.random_labels, config.seed)
    return presentation_with(config, labels)


def lora_of(config: Config) -> Lora:
    """The adapter a configuration describes."""
    return Lora(**{f.name: getattr(config.lora, f.name) for f in dataclasses.fields(Lora)})


def _started_from(given: str) -> Config | None:
    """The configuration of the run whose adapter is given; None if it is no run's."""
    folder, _ = named_checkpoint(given)
    check_no_population(folder, "lora.adapter")
    return read_config(folder) if is_run(folder) else None


def _given_adapter(config: Config, model: LoadedModel) -> tuple[Any, Lora]:
    """The weights of a PEFT adapter, or none of a run's, and how it adapts the model.

    Raises:
      UserError: there is no adapter, or it is of another model.
    """
    given: Any = config.lora.adapter
    theirs = _started_from(given)
    if theirs is None:
        return load_peft(Path(given), model.config, config.lora.dropout)
    if theirs.model.source == "tabular":
        raise UserError(f"lora.adapter: the run in {given} trained a table, which is no adapter")
    if not same_model(theirs.model.sha256, model.sha256):
        raise UserError(
            f"lora.adapter: the run in {given} trained {theirs.model.source}, with the digest"
            f" {theirs.model.sha256}; that of {config.model.source} is {model.sha256}"
        )
    return None, dataclasses.replace(lora_of(theirs), dropout=config.lora.dropout)


def _source_of(config: Config) -> str:
    """The base's source, at the revision on which a given adapter was trained."""
    source, given = config.model.source, config.lora.adapter
    if given is None:
        return source
    theirs = _started_from(given)
    if theirs is None:
        return at_revision(source, Path(given))
    return theirs.model.source if same_base(source, theirs.model.source) else source


def check_lengths(key: str, prompter: Prompter, conditions: Iterable[Condition]) -> None:
    """Raises UserError if labels differ in tokens, of which an answer that is sampled has a number.

    Args:
      key: that names the labels.
      prompter: of the conditions.
      conditions: that one program shows.
    """
    pairs = {condition.presentation.labels for condition in conditions}
    budgets = {prompter.responses(pair).trie.prefix_edges.shape[1] for pair in pairs}
    if len(budgets) > 1:
        raise UserError(
            f"{key}: with ppo.level token all labels must have as many tokens; here they have"
            f" {min(budgets)} to {max(budgets)}"
        )


class _Plan(NamedTuple):
    """All of an agent that is known before the base's weights are read."""

    layout: Layout
    prompter: Prompter
    presentation: Presentation
    lora: Lora
    adapter: Any
    packed: PackedPrompts
    needed: Footprint


def _plan(config: Config, units: int | None, model: LoadedModel) -> _Plan:
    base, settings, decoder = config.model, config.lora, model.config
    size = weight_bytes(decoder, 4 if base.dtype == "float32" else 2)
    layout = make_layout(config.mesh, units, decoder.num_heads, size)
    multiple = 1 if layout.side_by_side else layout.num_places
    presentation = make_presentation(config, model)
    wordings = config.mixture.wordings or [presentation.wording]
    thinking = make_thinking(config, model, wordings)
    shown = config.prompt
    prompter = Prompter(
        model, shown.template, base.max_nodes, multiple, thinking, switch=shown.thinking
    )
    lora = lora_of(config)
    for name in lora.targets:
        if name not in decoder.linear_names:
            raise UserError(
                f"lora.targets: {base.source} has no linear layer {name}, only"
                f" {' '.join(decoder.linear_names)}"
            )
    adapter = None
    if settings.adapter is not None:
        adapter, lora = _given_adapter(config, model)
    # One shape serves all that will be drawn; what cannot be spelled is said now.
    conditions = every_condition(config, presentation)
    room = prompter.room(conditions, drawable_points(config))
    if config.ppo.level == "token":
        check_lengths("mixture.labels", prompter, conditions)
    packed = prompter.pack(player_conditions(config, presentation)[:1], room)
    needed = footprint(config, decoder, lora, packed, layout, units or 1)
    return _Plan(
        layout=layout,
        prompter=prompter,
        presentation=presentation,
        lora=lora,
        adapter=adapter,
        packed=packed,
        needed=needed,
    )


def make_agent(
    config: Resolved,
    units: int | None = 1,
    warn: Callable[[str], None] | None = None,
    *,
    open_model: Callable[..., Opened] = open_model,
) -> Agent:
    """Builds the agent a configuration asks for.

    Args:
      config: of the agent.
      units: how many members of a population, or conditions of an evaluation, are computed side by
        side; 1 for a single agent in training, None for any number.
      warn: where a line goes, before the weights are read, if training needs more memory than is
        free.
      open_model: what finds the model of its source, as `models.load.open_model` does.

    Raises:
      UserError: the model, the labels or the mesh cannot be used.
    """
    if config.model.source == "tabular":
        if config.lora.adapter is not None:
            raise UserError("lora.adapter: a tabular policy has no adapter")
        return _tabular(config, units, warn)
    base = config.model
    quantisation = None if base.quantisation == "none" else base.quantisation
    opened = open_model(_source_of(config), base.dtype, base.sha256, quantisation)
    plan = _plan(config, units, opened.model)
    if warn and (line := shortage(plan.needed, free_bytes(), config, units or 1)):
        warn(line)
    model = opened.read(plan.layout)
    policy = LanguagePolicy(
        config=model.config,
        definition=model.definition,
        lora=plan.lora,
        remat=base.remat,
        max_logits=base.max_logits * 10**6,
        max_nodes=base.max_nodes,
        layout=plan.layout,
        beside=model.beside,
    )
    if plan.prompter.thinking is not None:
        policy = ThinkingPolicy(**vars(policy), thinking=plan.prompter.thinking)
    return Agent(
        policy=policy,
        frozen=model.weights,
        prompter=plan.prompter,
        presentation=plan.presentation,
        summary=_summary(config, model, plan),
        layout=plan.layout,
        model=model,
        lora=plan.lora,
        adapter=plan.adapter,
    )


def _tabular(config: Config, units: int | None, warn: Callable[[str], None] | None) -> Agent:
    """An agent of free logits."""
    presentation = make_presentation(config, None)
    histories = presentation.remembers(training_game(config)).histories
    tabular = TabularPolicy(len(histories) * NUM_ORDERS)
    summary = [f"policy     tabular: {tabular.num_prompts} prompts x 3 outcomes, all trained"]
    layout = make_layout(config.mesh, units)
    rounds = Footprint(0, 0, 0, round_bytes(config, units or 1))
    if warn and (line := shortage(rounds, free_bytes(), config)):
        warn(line)
    return Agent(
        policy=tabular,
        frozen=(),
        prompter=TablePrompter(),
        presentation=presentation,
        summary=summary,
        layout=layout,
    )


def settle(config: Resolved, agent: Agent) -> Settled:
    """The configuration with what only the model's and the adapter's files could tell."""
    model = config.model
    if agent.model:
        model = dataclasses.replace(model, source=agent.model.source, sha256=agent.model.sha256)
    lora = config.lora
    if agent.lora:
        lora = dataclasses.replace(lora, **dataclasses.asdict(agent.lora))
    wording, persona, labels, *_ = agent.presentation
    prompt = dataclasses.replace(
        config.prompt, wording=wording, persona=persona, labels=labels, random_labels=0
    )
    thinking = config.thinking
    if isinstance(agent.policy, ThinkingPolicy):
        around = agent.policy.thinking
        thinking = dataclasses.replace(thinking, cue=around.cue, stop=around.stop)
    config = dataclasses.replace(config, model=model, lora=lora, prompt=prompt, thinking=thinking)
    return Settled(config)


def _summary(config: Config, model: LoadedModel, plan: _Plan) -> list[str]:
    lengths, tokens, lora = plan.packed.lengths, plan.packed.tree.tokens, plan.lora
    trees, size = tokens.shape[1:]
    tokens_alone = lengths.sum()
    if plan.prompter.thinking is not None:
        assert plan.packed.branches is not None
        behind = plan.packed.branches.slots.shape[-1]
        tokens_alone = np.sum(lengths + behind) * plan.prompter.thinking.thoughts
    head = model.config.embed_dim + 1
    kind: str = config.model.dtype
    if model.config.quantisation:
        kind = f"{model.config.quantisation} dequantised to {kind}"
    thinking = plan.prompter.thinking
    thinks = []
    if thinking is not None:
        thinks = [
            f"thoughts   {thinking.thoughts} a prompt of up to {thinking.tokens} tokens, then"
            f" {thinking.cue!r}"
        ]
    alike = [
        f"mixture    no points are shown in {wording.splitlines()[0][:40]!r}: there all games are"
        " one prompt, with the rewards of each"
        for wording in without_points(config, plan.presentation.wording)
    ]
    return [
        f"model      {config.model.source}: {num_parameters(model.config) / 1e6:.1f} M parameters,"
        f" {kind}, frozen",
        f"trained    LoRA rank {lora.rank} on {' '.join(lora.targets)}:"
        f" {num_adapter_parameters(model.config, lora):,} parameters; value head: {head:,}",
        f"prompts    {lengths.size} of up to {lengths.max()} tokens;"
        f" {'one tree' if trees == 1 else f'{trees} trees'} of {size:,} nodes instead of"
        f" {tokens_alone:,} tokens",
        *thinks,
        *alike,
        f"memory     about {sum(plan.needed) / 2**30:.1f} GiB for weights, optimiser and"
        " activations",
    ]
