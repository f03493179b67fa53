"""Every key of a configuration: its type, its default, the values it may have, what it means.

A key is a field of a dataclass; the dataclasses are groups, and `Config` holds them all. What keys
must not contradict each other in is in `checks.py`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from jaxmoral.config.base import LoraConfig, MeshConfig, ModelConfig
from jaxmoral.config.keeping import AnchorConfig, DistilConfig
from jaxmoral.config.kinds import (
    Bool,
    Finite,
    Fraction,
    NonNegative,
    Number,
    PositiveFloat,
    PositiveInt,
    Weight,
    closed,
)

Axis = Annotated[tuple[str, ...], Field(min_length=1)]
TableOrder = Literal["original", "permuted1", "permuted2", "reversed"]


def _names(value: Any) -> Any:
    """Names as a list: without brackets they have commas between them, or are none."""
    if value is None or value == "none":
        return ()
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio"], ...], pydantic.BeforeValidator(_names)
]
# YAML reads a bare off as false.
ThinkingSwitch = Annotated[
    Literal["default", "off"], pydantic.BeforeValidator(lambda x: "off" if x is False else x)
]


@closed
@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a game is put into words; see `jaxmoral.language.prompts`.

    Attributes:
      labels: what C and D are called.
      random_labels: instead, two random strings of so many tokens, drawn from the seed; 0 for none.
      wording: a name in `jaxmoral/language/wordings`, or the path of a template of your own.
      persona: "none", a name in `jaxmoral/language/personas`, or the path of a text that goes
        first.
      table_order: of the payoff table's columns and rows.
      template: the prompt as it is, or as a chat turn.
      thinking: what the chat template does of itself, or "off": the template's own way to leave the
        thought before an answer empty.
    """

    labels: tuple[str, str] = ("action1", "action2")
    random_labels: Annotated[int, Field(ge=0, le=16, strict=True)] = 0
    wording: str = "structured"
    persona: str = "none"
    table_order: TableOrder = "original"
    template: Literal["plain", "chat"] = "plain"
    thinking: ThinkingSwitch = "default"


@closed
@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """What is played, by how many episodes at once, for how many rounds.

    Attributes:
      game: a name in `jaxmoral.world.games`, of a family, or of your own.
      opponent: a name in `jaxmoral.world.opponents`, or "learner": a second agent on the same base,
        with an adapter, optimiser, value head and KL weight of its own and the same reward; or an
        agent that does not learn, a path (with FOLDER@40 or FOLDER@best of one of a run's
        checkpoints) or "past(k)", see `jaxmoral.learning.met`.
      opponent_illegal: what counts when a learner's opponent answers illegally: the opponent's last
        legal move, 0 points ("zero"), R_illegal ("penalty"), or what the paper's code does, which
        differs by reward ("paper").
      episodes: played at once in every update.
      rounds: of an episode.
      noise: probability in training that the agent's legal answer comes out as the other move (a
        trembling hand; the opponent's is in its name, "noisy(tit-for-tat, 0.1)").
      memory: how many past rounds the prompt shows.
      blank_start: episodes begin without remembered rounds, and there is a prompt for that.
      payoff_draws: other payoffs in the same order, so many sets of them drawn anew every update
        and shown in the prompts; 0 for the game's own.
      payoff_range: the smallest and the largest whole number drawn.
      max_prompts: the most prompts of an update.
      streams: where remembered rounds, label orders and the random opponent's moves come from:
        JAX's generator, or the paper's six numpy streams, draw for draw.
    """

    game: str = "ipd"
    opponent: str = "tit-for-tat"
    opponent_illegal: Literal["last-move", "zero", "penalty", "paper"] = "last-move"
    episodes: PositiveInt = 4096
    rounds: PositiveInt = 5
    noise: Fraction = 0.0
    memory: Annotated[int, Field(ge=0, le=3, strict=True)] = 1
    blank_start: Bool = False
    payoff_draws: Annotated[int, Field(ge=0, strict=True)] = 0
    payoff_range: tuple[int, int] = (1, 9)
    max_prompts: Annotated[int, Field(gt=0, le=2**15, strict=True)] = 1024  # numbered in 16 bits
    streams: Literal["jax", "numpy"] = "jax"


@closed
@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Conditions from which every update draws; see `jaxmoral.learning.mixture`.

    What is null has the one value that `env` and `prompt` give it.

    Attributes:
      games: names and sets, as in `evaluation.games`; all with as many players as `env.game`.
      labels: pairs of C's and D's, or so many, drawn by the seed from a list: "words(n)", or
        "labels(n)", which has longer ones too.
      both_ways: every pair also with its meanings exchanged.
      wordings, personas, table_orders: as `prompt.wording`, `prompt.persona` and
        `prompt.table_order` have one.
      opponents: who is met, by weight: an episode is against one of them, each as it could be
        `env.opponent`, but no learner; null for `env.opponent`.
      conditions: drawn each update; its cost grows with them, not with the mixture.
      kept: how many conditions' packed prompts and references are kept; others are made again.
    """

    games: Axis | None = None
    labels: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)] | str | None = None
    both_ways: Bool = False
    wordings: Axis | None = None
    personas: Axis | None = None
    table_orders: Annotated[tuple[TableOrder, ...], Field(min_length=1)] | None = None
    opponents: Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    conditions: PositiveInt = 1
    kept: PositiveInt = 1000


@closed
@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The intrinsic reward, in points (arXiv 2410.01639, section 2 and Table 1).

    Attributes:
      name: in `jaxmoral.world.rewards`, or a weighted sum: "game+0.5*virtue-equality".
      then, switch_at: another reward after update `switch_at` ("unlearning"), by default half-way;
        that update's checkpoint is kept.
      transition: from `name` to `then`, all at once or in equal steps over the whole run.
      normalise: map the rewards of each game's legal rounds to [0, 1].
      xi: points of the deontological penalty.
      illegal: points of an answer that is neither label.
      exploitability: what is taken off for each point a round that a best response would take from
        the agent; see `docs/games.md`.
    """

    name: str = "deontological"
    then: str | None = None
    transition: Literal["switch", "linear"] = "switch"
    switch_at: PositiveInt | None = None
    normalise: Bool = False
    xi: NonNegative = 3.0
    illegal: Finite = -6.0
    exploitability: NonNegative = 0.0

    @property
    def title(self) -> str:
        """The reward, or the two rewards, in words."""
        return self.name if self.then is None else f"{self.name}, then {self.then}"


@closed
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation; weights of KL and entropy are in reward units per nat.

    Attributes:
      level: what an action is: the whole answer with its exact probability and exact KL and entropy
        terms in the loss, or each token of a sampled answer with the KL as a reward per token, as
        in the paper (then gamma is 1 and gae_lambda runs over tokens; there is no entropy term).
      estimator: an update's episodes are sampled, or their expectation is computed from the Markov
        chain of remembered rounds, without sampling ("exact"; outcome level only).
      learning_rate, learning_rate_schedule: Adam's rate at the first update; whether it stays, or
        falls to 0 over the run.
      epochs: passes over an update's episodes.
      minibatches: gradient steps of a pass.
      clip: how far a probability may move away, relative to the old one.
      value_clip: how far a value may move away, in reward units; .inf for no limit.
      value_coef: weight of the value loss.
      sample_with_dropout: answers are sampled with the adapter's dropout on (token level only).
      max_grad_norm: gradients are scaled down to it; .inf for no limit.
      gamma: 0 makes each round a bandit, as in the paper.
      gae_lambda: of generalised advantage estimation.
      normalise_advantages: to mean 0 and variance 1 in every update.
      normalise_rewards: to mean 0 and variance 1 over all rewards so far.
      entropy_coef, final_entropy_coef: weight of the entropy at the first update, and after the
        last; linear between.
      barrier_coef: weight of a barrier before answers that never give one of the labels (outcome
        level only), so that what was unlearned is still tried.
      kl_coef: weight of the KL from the base at the first update.
      kl_target, kl_gain: each update changes the KL's weight by the factor
        1 + kl_gain * clip(kl / kl_target - 1, -0.2, 0.2); a gain of 0 fixes it.
    """

    level: Literal["outcome", "token"] = "outcome"
    estimator: Literal["sampled", "exact"] = "sampled"
    sample_with_dropout: Bool = False
    learning_rate: PositiveFloat = 2e-4
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    clip: PositiveFloat = 0.2
    value_clip: Annotated[float, Field(gt=0)] = 1.0
    value_coef: NonNegative = 0.1
    entropy_coef: NonNegative = 1.0
    final_entropy_coef: NonNegative = 0.1
    barrier_coef: NonNegative = 0.0
    gamma: Fraction = 0.0
    gae_lambda: Fraction = 0.95
    normalise_advantages: Bool = False
    normalise_rewards: Bool = False
    kl_coef: NonNegative = 0.02
    kl_target: PositiveFloat = 6.0
    kl_gain: NonNegative = 0.1


@closed
@dataclasses.dataclass(frozen=True)
class ThinkingConfig:
    """Whether the agent thinks before it answers; see `jaxmoral.learning.thinking`.

    A thought is sampled after the prompt, at temperature 1; then comes the cue, and after it the
    answer's distribution is exact. What an agent does is the mean over its thoughts.

    Attributes:
      tokens: the most of a thought; 0 for no thinking.
      thoughts: of each prompt in an update.
      cue: the text between a thought and the answer; null for what follows {think} in the wording,
        or in a chat for what ends the model's own thinking.
      stop: a text that ends a thought, and every token that holds it; null for the end of a line,
        or in a chat for what ends the model's own thinking.
      baseline: what a thought's worth is compared with: the mean of the prompt's other thoughts
        ("group"; "group-std" divides by their standard deviation, as in GRPO), or the value head's
        estimate.
      ratio: what is clipped: each token's ratio of probabilities (PPO), or a thought's geometric
        mean of them ("sequence", GSPO).
      kl_coef: weight of the thoughts' KL to the reference policy, in reward units per nat.
    """

    tokens: Annotated[int, Field(ge=0, le=2**15, strict=True)] = 0
    thoughts: Annotated[int, Field(gt=0, le=2**15, strict=True)] = 8
    cue: str | None = None
    stop: str | None = None
    baseline: Literal["group", "group-std", "value"] = "group"
    ratio: Literal["token", "sequence"] = "token"
    kl_coef: NonNegative = 0.02


@closed
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a trained agent is tested.

    Attributes:
      suites: names in `jaxmoral.language.suites`, or "all".
      games: of the suites that play several; names, or sets: "all" (the paper's and this
        configuration's), "ordinal-symmetric", "ordinal-all", "asymmetric", "plane".
      opponents: names, each against every condition.
      labels: of C and D, for the suites that test labels never seen in training.
      protocols: "exact", always measured, has no sampling noise; "long-run" is the same of an
        episode without end; "sampled" plays `episodes`; "paper" plays 10 x 5 rounds against random
        from the paper's numpy streams, seed 100.
      xi: the deontological penalty in points; null is the reward's. The paper's figures used 4.
      thinking: the most tokens of a thought, if not what `thinking.tokens` says; 0 gives a thinking
        agent the cue at once.
      episodes: of the protocol "sampled".
      rounds: of an episode.
    """

    suites: Annotated[tuple[str, ...], Field(min_length=1)] = ("trained",)
    games: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    opponents: Annotated[tuple[str, ...], Field(min_length=1)] = ("random",)
    labels: tuple[str, str] = ("action3", "action4")
    protocols: Annotated[
        tuple[Literal["exact", "long-run", "sampled", "paper"], ...], Field(min_length=1)
    ] = ("exact", "long-run", "sampled")
    xi: NonNegative | None = None
    episodes: PositiveInt = 100_000
    rounds: PositiveInt = 5
    thinking: Annotated[int, Field(ge=0, le=2**15, strict=True)] | None = None


@closed
@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      preset: which defaults: those shown here ("fast"), or those of `jaxmoral/presets/paper.yaml`.
      games: further games, name to payoff pairs `{CC: [3, 3], CD: [0, 4], DC: [4, 0], DD: [1, 1]}`
        or, of N players, to own points by how many others co-operate, `{C: [0, 2], D: [1, 4]}`.
      opponents: further opponents, name to `{cooperate, transitions, start}`; see
        `jaxmoral.world.machines.machine`.
      plugins: Python files that are run first and register rewards, opponents, games, ... of your
        own; see `jaxmoral.learning.plugins`.
      objective: what training is for: the reward, or that the agent does what its base does behind
        a persona ("distil"), for which there is no reward, only a measure of it.
      seed: of everything that is drawn.
      updates: PPO updates, each on fresh episodes.
      checkpoint_every: updates between two checkpoints; the last update always has one.
      tracker: where metrics go besides files: tensorboard, wandb, trackio, several or none; see
        `jaxmoral.learning.trackers`.

    >>> jaxmoral.Config().env.opponent
    'tit-for-tat'
    """

    preset: Literal["fast", "paper"] = "fast"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    prompt: PromptConfig = PromptConfig()
    env: EnvConfig = EnvConfig()
    mixture: MixtureConfig = MixtureConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    thinking: ThinkingConfig = ThinkingConfig()
    distil: DistilConfig = DistilConfig()
    anchor: AnchorConfig = AnchorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    games: dict[str, dict[str, tuple[Number, ...]]] = dataclasses.field(default_factory=dict)
    opponents: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    objective: Literal["reward", "distil"] = "reward"
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    updates: PositiveInt = 40
    checkpoint_every: PositiveInt = 10
    tracker: Trackers = ("tensorboard",)

    @property
    def title(self) -> str:
        """What training is for, in a few words."""
        if self.objective == "reward":
            return self.reward.title
        return f"distilled {self.distil.persona.splitlines()[0][:40]}"


def _known_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            keys += _known_keys(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            keys.append(prefix + field.name)
    return keys


KEYS = _known_keys(Config)
ADAPTER = pydantic.TypeAdapter(Config)
