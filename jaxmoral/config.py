"""Typed configuration: dataclasses with defaults, read from YAML, overridden by flags.

Every key of the YAML has a flag with the same dotted name, e.g. `--ppo.learning_rate 1e-4`.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from jaxmoral.errors import UserError

Positive = Annotated[int, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
_closed = pydantic.with_config(pydantic.ConfigDict(extra="forbid"))  # no unknown keys
LinearName = Literal["q", "k", "v", "o", "gate", "up", "down"]


@_closed
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which policy is trained.

    Attributes:
      source: a packaged model's name, the path of a GGUF file or of a folder in Hugging Face
        layout, a hub id "owner/name" or "owner/name@revision", or "tabular" for free logits per
        prompt.
      sha256: the digest the model must have (see `jaxmoral.gemma.load.LoadedModel`); filled in
        when a run starts.
      dtype: of the frozen weights; "auto" is float32 on CPU and bfloat16 on accelerators.
      quantisation: of the frozen matrices: 8-bit integers or 4-bit NF4 instead of `dtype`.
      remat: recompute activations in the backward pass: less memory, more time.
    """

    source: str = "gemma3-270m"
    sha256: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantisation: Literal["none", "int8", "nf4"] = "none"
    remat: Flag = False


@_closed
@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapter; see `jaxmoral.gemma.lora.Lora`.

    Attributes:
      adapter: the folder of a PEFT adapter to start from; it then decides rank, alpha, targets and
        rank_stabilised.
    """

    adapter: str | None = None
    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[LinearName, ...], Field(min_length=1)] = (
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
    )
    rank_stabilised: Flag = False


@_closed
@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a game is put into words; see `jaxmoral.prompts`.

    Attributes:
      labels: what C and D are called.
      random_labels: instead, two random strings of so many tokens, drawn from the seed; 0 for none.
      wording: a name in `jaxmoral/wordings`, or the path of a template of your own.
      persona: "none", a name in `jaxmoral/personas`, or the path of a text that goes first.
      table_order: of the payoff table's columns and rows.
      template: the prompt as it is, or as a chat turn.
    """

    labels: tuple[str, str] = ("action1", "action2")
    random_labels: Annotated[int, Field(ge=0, le=16, strict=True)] = 0
    wording: str = "structured"
    persona: str = "none"
    table_order: Literal["original", "permuted1", "permuted2", "reversed"] = "original"
    template: Literal["plain", "chat"] = "plain"


@_closed
@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """What is played, by how many episodes at once, for how many rounds.

    Attributes:
      opponent: a name in `jaxmoral.opponents`, or "learner": a second agent on the same base, with
        an adapter, optimiser, value head and KL weight of its own and the same reward.
      opponent_illegal: what counts when a learner's opponent answers illegally: the opponent's last
        legal move, 0 points ("zero"), R_illegal ("penalty"), or what the paper's code does, which
        differs by reward ("paper").
      streams: where remembered rounds, label orders and the random opponent's moves come from:
        JAX's generator, or the paper's six numpy streams, draw for draw.
    """

    game: str = "ipd"
    opponent: str = "tit-for-tat"
    opponent_illegal: Literal["last-move", "zero", "penalty", "paper"] = "last-move"
    episodes: Positive = 4096
    rounds: Positive = 5
    streams: Literal["jax", "numpy"] = "jax"


@_closed
@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The intrinsic reward, in points (arXiv 2410.01639, section 2 and Table 1).

    Attributes:
      then, switch_at: another reward after update `switch_at` ("unlearning"), by default half-way;
        that update's checkpoint is kept.
    """

    name: str = "deontological"
    then: str | None = None
    switch_at: Positive | None = None
    xi: NonNegative = 3.0
    illegal: Finite = -6.0


@_closed
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation; weights of KL and entropy are in reward units per nat.

    Attributes:
      level: what an action is: the whole answer with its exact probability and exact KL and entropy
        terms in the loss, or each token of a sampled answer with the KL as a reward per token, as
        in the paper (then gamma is 1 and gae_lambda runs over tokens; there is no entropy term).
      sample_with_dropout: answers are sampled with the adapter's dropout on (token level only).
      max_grad_norm: gradients are scaled down to it; .inf for no limit.
      gamma: 0 makes each round a bandit, as in the paper.
      entropy_coef, final_entropy_coef: at the first and after the last update, linear between.
      kl_target, kl_gain: each update changes the KL's weight by the factor
        1 + kl_gain * clip(kl / kl_target - 1, -0.2, 0.2); a gain of 0 fixes it.
    """

    level: Literal["outcome", "token"] = "outcome"
    sample_with_dropout: Flag = False
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Positive = 1
    minibatches: Positive = 1
    clip: Annotated[float, Field(gt=0)] = 0.2
    value_clip: Annotated[float, Field(gt=0)] = 1.0
    value_coef: NonNegative = 0.1
    entropy_coef: NonNegative = 1.0
    final_entropy_coef: NonNegative = 0.1
    gamma: Fraction = 0.0
    gae_lambda: Fraction = 0.95
    normalise_advantages: Flag = False
    normalise_rewards: Flag = False
    kl_coef: NonNegative = 0.02
    kl_target: Annotated[float, Field(gt=0)] = 6.0
    kl_gain: NonNegative = 0.1


@_closed
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a trained agent is tested.

    Attributes:
      suites: names in `jaxmoral.suites`, or "all".
      games: of the suites that play several; "all" is every registered one.
      labels: of C and D, for the suites that test labels never seen in training.
      protocols: "exact", always measured, has no sampling noise; "sampled" plays `episodes`;
        "paper" plays 10 x 5 rounds against random from the paper's numpy streams, seed 100.
      xi: the deontological penalty in points; None is the reward's. The paper's figures used 4.
    """

    suites: Annotated[tuple[str, ...], Field(min_length=1)] = ("trained",)
    games: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    opponents: Annotated[tuple[str, ...], Field(min_length=1)] = ("random",)
    labels: tuple[str, str] = ("action3", "action4")
    protocols: Annotated[tuple[Literal["exact", "sampled", "paper"], ...], Field(min_length=1)] = (
        "exact",
        "sampled",
    )
    xi: NonNegative | None = None
    episodes: Positive = 100_000
    rounds: Positive = 5


@_closed
@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      preset: where defaults come from: this module ("fast"), or `jaxmoral/presets/paper.yaml`.
      games: further games, name to payoff pairs `{CC: [3, 3], CD: [0, 4], DC: [4, 0], DD: [1, 1]}`.
      updates: PPO updates, each on fresh episodes.
      checkpoint_every: updates between two checkpoints; the last update always has one.
    """

    preset: Literal["fast", "paper"] = "fast"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    prompt: PromptConfig = PromptConfig()
    env: EnvConfig = EnvConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    games: dict[str, dict[str, tuple[float, float]]] = dataclasses.field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    updates: Positive = 40
    checkpoint_every: Positive = 10


def _known_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            keys += _known_keys(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            keys.append(prefix + field.name)
    return keys


PAPER_PRESET = Path(__file__).parent / "presets" / "paper.yaml"
KEYS = _known_keys(Config)
_ADAPTER = pydantic.TypeAdapter(Config)


def parse(tree: dict[str, Any]) -> Config:
    """Checks a nested dictionary and fills in defaults.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of range, or two keys that
        contradict each other; the message names the key and what is allowed.
    """
    if tree.get("preset") == "paper":
        tree = _merge(_read_yaml(PAPER_PRESET), tree)
    try:
        config = _ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error)) from None
    _check_combinations(config)
    return config


def _merge(defaults: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `defaults`, group by group."""
    merged = dict(defaults)
    for name, value in tree.items():
        both = isinstance(value, dict) and isinstance(defaults.get(name), dict)
        merged[name] = defaults[name] | value if both else value
    return merged


def _check_combinations(config: Config) -> None:
    samples, minibatches = config.env.episodes * config.env.rounds, config.ppo.minibatches
    if samples % minibatches:
        raise UserError(
            f"ppo.minibatches: {minibatches} does not divide env.episodes * env.rounds = {samples}"
        )
    switch_at = config.reward.switch_at
    if switch_at is not None and config.reward.then is None:
        raise UserError("reward.switch_at: needs reward.then, the reward to switch to")
    if config.reward.then is not None and (switch_at or 1) >= config.updates:
        raise UserError(
            f"reward.switch_at: must be less than the {config.updates} updates, to leave some to"
            " reward.then"
        )
    if config.ppo.sample_with_dropout and config.ppo.level != "token":
        raise UserError("ppo.sample_with_dropout: needs ppo.level token")
    if config.ppo.level == "token" and config.ppo.minibatches != 1:
        raise UserError("ppo.minibatches: must be 1 with ppo.level token")


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75)
        group = key.rpartition(".")[0] + "." if "." in key else ""
        known = [name for name in KEYS if name.startswith(group)] or KEYS
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}: {message}, got {first['input']!r}"


def load(path: Path | str | None, flags: Sequence[str] = ()) -> Config:
    """Reads a YAML file (or nothing) and applies `--dotted.key value` flags on top of it.

    Raises:
      UserError: the file is missing or not YAML, or `parse` refuses the result.
    """
    tree = _read_yaml(Path(path)) if path else {}
    if len(flags) % 2:
        raise UserError(f"every flag needs a value; got {' '.join(flags)!r}")
    for flag, text in zip(flags[::2], flags[1::2], strict=True):
        if not flag.startswith("--"):
            raise UserError(f"expected a flag like --ppo.learning_rate, got {flag!r}")
        *groups, name = flag[2:].split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise UserError(f"unknown key {flag[2:]!r}: {group} is a value, not a group")
        try:
            node[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            node[name] = text
    return parse(tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"config: cannot read {path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree or {}, dict):
        raise UserError(f"config: {path} must hold keys and values")
    return tree or {}


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists, strings and numbers."""
    return _ADAPTER.dump_python(config, mode="json")


def save(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys in which two configurations differ."""

    def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            key = prefix + name
            found |= leaves(value, key + ".") if isinstance(value, dict) else {key: value}
        return found

    a, b = leaves(to_dict(one)), leaves(to_dict(other))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
