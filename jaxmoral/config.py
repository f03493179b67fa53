"""Typed configuration: dataclasses with defaults, read from YAML, overridden by flags.

Every key of the YAML has a flag with the same dotted name, e.g. `--ppo.learning_rate 1e-4`.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from jaxmoral.errors import UserError

Positive = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
      sha256: the digest the model must have (see `jaxmoral.models.load.LoadedModel`); filled in
        when a run starts.
      dtype: of the frozen weights; "auto" is float32 on CPU and bfloat16 on accelerators.
      quantisation: of the frozen matrices: 8-bit integers or 4-bit NF4 instead of `dtype`.
      remat: what the backward pass recomputes instead of finding it in memory: nothing ("none"),
        what is cheap to make from the matrix products ("elementwise"), or whole blocks ("block").
      max_nodes: of one prompt tree; more prompts make several, one after the other.
      max_logits: how many logits are in memory at once, in millions; more are made in parts.
    """

    source: str = "gemma3-270m"
    sha256: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantisation: Literal["none", "int8", "nf4"] = "none"
    remat: Literal["none", "elementwise", "block"] = "elementwise"
    max_nodes: Positive = 4096
    max_logits: Positive = 128


@_closed
@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapter; see `jaxmoral.models.lora.Lora`.

    Attributes:
      adapter: the folder of a PEFT adapter to start from; it then decides rank, alpha, targets and
        rank_stabilised.
    """

    adapter: str | None = None
    rank: Positive = 8
    alpha: Above = 16.0
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
    """How a game is put into words; see `jaxmoral.language.prompts`.

    Attributes:
      labels: what C and D are called.
      random_labels: instead, two random strings of so many tokens, drawn from the seed; 0 for none.
      wording: a name in `jaxmoral/language/wordings`, or the path of a template of your own.
      persona: "none", a name in `jaxmoral/language/personas`, or the path of a text that goes
        first.
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
      opponent: a name in `jaxmoral.world.opponents`, or "learner": a second agent on the same base,
        with an adapter, optimiser, value head and KL weight of its own and the same reward.
      opponent_illegal: what counts when a learner's opponent answers illegally: the opponent's last
        legal move, 0 points ("zero"), R_illegal ("penalty"), or what the paper's code does, which
        differs by reward ("paper").
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
    episodes: Positive = 4096
    rounds: Positive = 5
    noise: Fraction = 0.0
    memory: Annotated[int, Field(ge=0, le=3, strict=True)] = 1
    blank_start: Flag = False
    payoff_draws: Annotated[int, Field(ge=0, strict=True)] = 0
    payoff_range: tuple[int, int] = (1, 9)
    max_prompts: Annotated[int, Field(gt=0, le=2**15, strict=True)] = 1024  # numbered in 16 bits
    streams: Literal["jax", "numpy"] = "jax"


@_closed
@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The intrinsic reward, in points (arXiv 2410.01639, section 2 and Table 1).

    Attributes:
      name: in `jaxmoral.world.rewards`, or a weighted sum: "game+0.5*virtue-equality".
      then, switch_at: another reward after update `switch_at` ("unlearning"), by default half-way;
        that update's checkpoint is kept.
      transition: from `name` to `then`, all at once or in equal steps over the whole run.
      normalise: map the rewards of each game's legal rounds to [0, 1].
    """

    name: str = "deontological"
    then: str | None = None
    transition: Literal["switch", "linear"] = "switch"
    switch_at: Positive | None = None
    normalise: Flag = False
    xi: NonNegative = 3.0
    illegal: Finite = -6.0

    @property
    def title(self) -> str:
        """The reward, or the two rewards, in words."""
        return self.name if self.then is None else f"{self.name}, then {self.then}"


@_closed
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation; weights of KL and entropy are in reward units per nat.

    Attributes:
      level: what an action is: the whole answer with its exact probability and exact KL and entropy
        terms in the loss, or each token of a sampled answer with the KL as a reward per token, as
        in the paper (then gamma is 1 and gae_lambda runs over tokens; there is no entropy term).
      estimator: an update's episodes are sampled, or their expectation is computed from the Markov
        chain of remembered rounds, without noise ("exact"; outcome level only).
      sample_with_dropout: answers are sampled with the adapter's dropout on (token level only).
      max_grad_norm: gradients are scaled down to it; .inf for no limit.
      gamma: 0 makes each round a bandit, as in the paper.
      entropy_coef, final_entropy_coef: at the first and after the last update, linear between.
      kl_target, kl_gain: each update changes the KL's weight by the factor
        1 + kl_gain * clip(kl / kl_target - 1, -0.2, 0.2); a gain of 0 fixes it.
    """

    level: Literal["outcome", "token"] = "outcome"
    estimator: Literal["sampled", "exact"] = "sampled"
    sample_with_dropout: Flag = False
    learning_rate: Above = 2e-4
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Positive = 1
    minibatches: Positive = 1
    clip: Above = 0.2
    value_clip: Annotated[float, Field(gt=0)] = 1.0
    value_coef: NonNegative = 0.1
    entropy_coef: NonNegative = 1.0
    final_entropy_coef: NonNegative = 0.1
    gamma: Fraction = 0.0
    gae_lambda: Fraction = 0.95
    normalise_advantages: Flag = False
    normalise_rewards: Flag = False
    kl_coef: NonNegative = 0.02
    kl_target: Above = 6.0
    kl_gain: NonNegative = 0.1


@_closed
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a trained agent is tested.

    Attributes:
      suites: names in `jaxmoral.language.suites`, or "all".
      games: of the suites that play several; names, or sets: "all" (the paper's and this
        configuration's), "ordinal-symmetric", "ordinal-all", "asymmetric", "plane".
      labels: of C and D, for the suites that test labels never seen in training.
      protocols: "exact", always measured, has no sampling noise; "long-run" is the same of an
        episode without end; "sampled" plays `episodes`; "paper" plays 10 x 5 rounds against random
        from the paper's numpy streams, seed 100.
      xi: the deontological penalty in points; None is the reward's. The paper's figures used 4.
    """

    suites: Annotated[tuple[str, ...], Field(min_length=1)] = ("trained",)
    games: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    opponents: Annotated[tuple[str, ...], Field(min_length=1)] = ("random",)
    labels: tuple[str, str] = ("action3", "action4")
    protocols: Annotated[
        tuple[Literal["exact", "long-run", "sampled", "paper"], ...], Field(min_length=1)
    ] = ("exact", "long-run", "sampled")
    xi: NonNegative | None = None
    episodes: Positive = 100_000
    rounds: Positive = 5


@_closed
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many parts the devices are used in; see `jaxmoral.devices.mesh`. What is null is chosen.

    Attributes:
      data: places that compute members, conditions or nodes of the tree side by side.
      fsdp: the same, and the frozen weights are split over them.
      tensor: parts of every layer.
    """

    data: Positive | None = None
    fsdp: Positive | None = None
    tensor: Positive | None = None


@_closed
@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      preset: where defaults come from: this module ("fast"), or `jaxmoral/presets/paper.yaml`.
      games: further games, name to payoff pairs `{CC: [3, 3], CD: [0, 4], DC: [4, 0], DD: [1, 1]}`
        or, of N players, to own points by how many others co-operate, `{C: [0, 2], D: [1, 4]}`.
      opponents: further opponents, name to `{cooperate, transitions, start}`; see
        `jaxmoral.world.opponents.machine`.
      updates: PPO updates, each on fresh episodes.
      checkpoint_every: updates between two checkpoints; the last update always has one.

    >>> jaxmoral.Config().env.opponent
    'tit-for-tat'
    """

    preset: Literal["fast", "paper"] = "fast"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    prompt: PromptConfig = PromptConfig()
    env: EnvConfig = EnvConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    games: dict[str, dict[str, tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    opponents: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
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


MAX_MEMBERS = 4096  # of a population
# What a configuration can hold at most. It bounds the time to read one, and what messages show.
MAX_FILE = 200_000  # characters of a file, its aliases spelled out
MAX_TEXT = 16_000  # characters of a wording or a persona; escaped in a file, each may become six
MAX_NAME = 1_000  # characters of any other text, a path for instance
MAX_KEY = 100  # characters of a key
MAX_DEPTH = 16
MAX_ROUNDS = 2**31 - 1  # of all episodes together, which are indexed in 32 bits
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAK = re.compile(r"[\t\n\r\u2028\u2029]")
_TEXTS = ("prompt.wording", "prompt.persona")
PAPER_PRESET = Path(__file__).parent / "presets" / "paper.yaml"
KEYS = _known_keys(Config)
_ADAPTER = pydantic.TypeAdapter(Config)


def parse(tree: dict[str, Any]) -> Config:
    """Checks a nested dictionary and fills in defaults.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of range, or two keys that
        contradict each other; the message names the key and what is allowed.

    >>> jaxmoral.parse({"env": {"game": "ish"}, "updates": 20}).env.game
    'ish'
    """
    tree = _plain(tree)
    if tree.get("preset") == "paper":
        tree = _merge(_paper_preset(), tree)
    try:
        config = _ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error)) from None
    _check_sizes(config)
    _check_combinations(config)
    return config


@functools.cache
def _paper_preset() -> dict[str, Any]:
    return _read_yaml(PAPER_PRESET)


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy in which no two keys share a value.

    Raises:
      UserError: it is no dictionary, or holds what no configuration has and what could not be shown
        in a message or written to a file.
    """

    def copied(value: Any, key: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UserError(f"{key}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str) or len(name) > MAX_KEY or not name.isprintable():
                    raise UserError(
                        f"{key or 'config'}: a key must be text, at most {MAX_KEY} printable"
                        f" characters, got {_brief(name)}"
                    )
            start = f"{key}." if key else ""
            return {name: copied(one, start + name, depth + 1) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(one, key, depth + 1) for one in value]
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{key}: a whole number of more than 63 bits")
        if isinstance(value, str):
            is_text = key in _TEXTS and len(value.split()) > 1  # and not a name or a path
            most = MAX_TEXT if is_text else MAX_NAME
            if len(value) > most:
                raise UserError(f"{key}: {len(value):,} characters; {most:,} at most")
            if _CONTROL.search(value) or (_BREAK.search(value) and not is_text):
                raise UserError(f"{key}: holds a control character, got {_brief(value)}")
        return value

    if not isinstance(tree, dict):
        raise UserError(f"config: needs keys and values, got {_brief(tree)}")
    return copied(tree, "", 0)


def _brief(value: Any) -> str:
    """What a message shows of a value."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not write whole numbers of 4301 digits
        text = f"a {type(value).__name__} that is too large"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _merge(defaults: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `defaults`, group by group."""
    merged = dict(defaults)
    for name, value in tree.items():
        both = isinstance(value, dict) and isinstance(defaults.get(name), dict)
        merged[name] = defaults[name] | value if both else value
    return merged


def _check_sizes(config: Config) -> None:
    env, tests = config.env, config.evaluation
    played = {}
    if config.ppo.estimator == "sampled":
        played["env"] = env.episodes, env.rounds
    if "sampled" in tests.protocols:
        played["evaluation"] = tests.episodes, tests.rounds
    for group, (episodes, rounds) in played.items():
        if episodes * rounds > MAX_ROUNDS:
            raise UserError(
                f"{group}.episodes: {episodes:,} of {rounds:,} rounds are {episodes * rounds:,},"
                f" more than arrays can index ({MAX_ROUNDS:,}); lower it or {group}.rounds"
            )


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
    if config.reward.transition == "linear" and (switch_at or config.reward.then is None):
        raise UserError("reward.transition: linear needs reward.then, and no reward.switch_at")
    if config.ppo.estimator == "exact":
        if config.ppo.level == "token" or config.env.streams == "numpy":
            raise UserError("ppo.estimator: exact needs ppo.level outcome and env.streams jax")
        if config.ppo.minibatches != 1 or config.ppo.normalise_rewards:
            raise UserError(
                "ppo.estimator: exact needs ppo.minibatches 1 and ppo.normalise_rewards false"
            )
    env = config.env
    if env.streams == "numpy" and (env.memory != 1 or env.blank_start or env.payoff_draws):
        raise UserError(
            "env.streams: numpy needs env.memory 1, env.blank_start false and env.payoff_draws 0"
        )
    if env.payoff_draws and env.episodes % env.payoff_draws:
        raise UserError(
            f"env.payoff_draws: {env.payoff_draws} does not divide env.episodes = {env.episodes}"
        )
    low, high = env.payoff_range
    if not -999 <= low < high <= 999:
        raise UserError(f"env.payoff_range: needs two rising numbers within 999, got {low}, {high}")
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
    return f"{key}: {message}, got {_brief(first['input'])}"


def load(path: Path | str | None, flags: Sequence[str] = ()) -> Config:
    """Reads a YAML file (or nothing) and applies `--dotted.key value` flags on top of it.

    A flag and its value may also be one text, `--dotted.key=value`.

    Raises:
      UserError: the file is missing or not YAML, or `parse` refuses the result.

    >>> jaxmoral.load(None, ["--reward.name", "utilitarian"]).reward.name
    'utilitarian'
    """
    return parse(_read_tree(path, flags))


def load_members(path: Path | str | None, flags: Sequence[str] = ()) -> dict[str, Config]:
    """Like `load`, but a key may be a list of values (of a key that is a list itself, a list of
    lists): a population with a member for every combination, named "reward.name=game,seed=1".

    Raises:
      UserError: as for `load`, or a list is empty or there are too many combinations.

    >>> list(jaxmoral.load_members(None, ["--env.game", "[ipd, ish]", "--seed", "[0]"]))
    ['env.game=ipd,seed=0', 'env.game=ish,seed=0']
    """
    tree = _read_tree(path, flags)
    axes = _axes(tree)
    if not axes:
        return {"": parse(tree)}
    for key, values in axes.items():
        if not values:
            raise UserError(f"{key}: the list of values is empty")
    total = math.prod(map(len, axes.values()))
    if total > MAX_MEMBERS:
        raise UserError(f"{', '.join(axes)}: {total:,} combinations; {MAX_MEMBERS:,} at most")
    members = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{key}={_shown(value)}" for key, value in chosen.items())
        if name in members:
            raise UserError(f"{', '.join(axes)}: {_brief(name)} stands twice in the lists")
        members[name] = parse(_with_values(tree, chosen))
    return members


def _shown(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("/", "_")


def _axes(tree: dict[str, Any], cls: type = Config, prefix: str = "") -> dict[str, list]:
    """The keys that hold several values."""
    found: dict[str, list] = {}
    types = typing.get_type_hints(cls)
    for name, value in tree.items():
        kind = types.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            found |= _axes(value, kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, list) and kind is not None:
            inner = typing.get_origin(kind) is tuple
            if not inner or (value and isinstance(value[0], list)):
                found[prefix + name] = value
    return found


def _with_values(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    result = dict(tree)
    for key, value in values.items():
        *groups, name = key.split(".")
        node = result
        for group in groups:
            node[group] = dict(node[group])
            node = node[group]
        node[name] = value
    return result


def _read_tree(path: Path | str | None, flags: Sequence[str]) -> dict[str, Any]:
    tree = _plain(_read_yaml(Path(path))) if path else {}
    given = iter(flags)
    for flag in given:
        if not flag.startswith("--"):
            raise UserError(f"expected a flag like --ppo.learning_rate, got {_brief(flag)}")
        flag, equals, joined = flag.partition("=")
        text = joined if equals else next(given, None)
        if text is None:
            raise UserError(f"every flag needs a value; {_brief(flag)} has none")
        *groups, name = flag[2:].split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise UserError(f"unknown key {_brief(flag[2:])}: a part of it is no group")
        try:
            node[name] = _parse_yaml(text)
        except yaml.YAMLError:
            node[name] = text
    return _plain(tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            tree = _parse_yaml(file.read(MAX_FILE + 1))
    except OSError as error:
        raise UserError(f"config: cannot read {path} ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # also of other bytes than UTF-8
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        reason = " ".join(reason.split())[:200]
        raise UserError(f"config: {path} is not YAML ({reason})") from None
    if not isinstance(tree or {}, dict):
        raise UserError(f"config: {path} must hold keys and values")
    return tree or {}


class _Loader(yaml.SafeLoader):
    """Plain YAML that is not larger, with every alias spelled out, than a file may be.

    The size is known before anything is built: a few merge keys could ask for billions of values.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and node not in self._sizes:
            raise yaml.YAMLError("an alias stands for what it is in")
        if node is not None and not alias:
            self._sizes[node] = self._size(node)
            if self._sizes[node] > 2 * MAX_FILE:  # 2: without aliases none is so large
                raise yaml.YAMLError("its aliases stand for too much")
        return node

    def _size(self, node: yaml.Node) -> int:
        """Characters, and one for each value."""
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        pairs = isinstance(node, yaml.MappingNode)
        children = itertools.chain.from_iterable(node.value) if pairs else node.value
        return 1 + sum(self._sizes[child] for child in children)


def _parse_yaml(text: str) -> Any:
    """Plain values; raises yaml.YAMLError."""
    if len(text) > MAX_FILE:
        raise yaml.YAMLError(f"longer than {MAX_FILE:,} characters")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, LookupError, AttributeError):  # from PyYAML's makers of numbers and dates
        raise yaml.YAMLError("a number, a date or a tag cannot be read") from None


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists, strings and numbers."""
    return _ADAPTER.dump_python(config, mode="json")


def save(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        found |= flatten(value, key + ".") if isinstance(value, dict) else {key: value}
    return found


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys in which two configurations differ."""
    return tree_differences(to_dict(one), to_dict(other))


def tree_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys in which two nested dictionaries differ."""
    a, b = flatten(one), flatten(other)

    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
