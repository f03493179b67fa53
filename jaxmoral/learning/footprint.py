"""How much memory training takes, how much is free, and what to lower if that is less."""

from pathlib import Path
from typing import NamedTuple

import jax

from jaxmoral.config import Config
from jaxmoral.devices.mesh import Layout
from jaxmoral.learning.language_policy import PackedPrompts
from jaxmoral.learning.lookup import num_learners
from jaxmoral.learning.thinking_policy import NORMALISED_AT_ONCE
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.lora import Lora
from jaxmoral.models.model import tokens_at_once
from jaxmoral.models.sizes import activation_bytes, adapter_bytes, weight_bytes

GIB = 2**30
_BYTES_A_ROUND = 60  # that an update takes for each sampled round of a player, on a CPU


class Footprint(NamedTuple):
    """Estimated bytes of a training run, on all devices together.

    Attributes:
      weights: of the frozen base.
      adapters: parameters, optimiser states and gradients of all that are trained; on a CPU also
        the copy that a checkpoint is written from.
      activations: of an update.
      rounds: that an update samples.
    """

    weights: int
    adapters: int
    activations: int
    rounds: int


def round_bytes(config: Config, members: int = 1) -> int:
    """What an update's sampled rounds take, of all members."""
    if config.ppo.estimator == "exact":
        return 0
    num_players = num_learners(config)
    return members * num_players * config.env.episodes * config.env.rounds * _BYTES_A_ROUND


def footprint(
    config: Config,
    model: DecoderConfig,
    lora: Lora,
    inputs: PackedPrompts,
    layout: Layout,
    members: int = 1,
) -> Footprint:
    """The footprint of training, on all devices together.

    Args:
      config: of the run, or of a population's first member.
      model, lora: of the base and its adapters.
      inputs: the prompts of one player, `[1, num_chunks, ...]`.
      layout: where arrays go.
      members: of the population.
    """
    on_cpu = jax.default_backend() == "cpu"
    itemsize = 4 if config.model.dtype == "float32" else 2
    num_players = num_learners(config)
    _, num_chunks, nodes = inputs.tree.tokens.shape
    _, _, num_blocks, before = inputs.tree.paths.shape
    tree = nodes, before + nodes // num_blocks
    rows = inputs.nodes.size // num_chunks
    max_logits = config.model.max_logits * 10**6
    if config.ppo.level == "token":  # each sampled answer is read behind its prompt
        budget = inputs.trie.prefix_edges.shape[-1]
        samples = config.env.episodes * config.env.rounds
        longest = inputs.tokens.shape[-1] + budget - 1
        tree = samples * longest, longest
        logits = max(rows * model.vocab_size, min(samples * budget * model.vocab_size, max_logits))
    else:
        logits = rows * tokens_at_once(model, layout, rows, max_logits)
        if inputs.branches is not None:
            *_, num_thoughts, _ = inputs.branches.slots.shape
            thoughts = inputs.lengths.shape[-1] * num_thoughts
            sampled = min(thoughts * config.thinking.tokens, NORMALISED_AT_ONCE)
            for rows in (sampled, thoughts):  # that are learned, that are drawn at once
                logits = max(logits, rows * tokens_at_once(model, layout, rows, max_logits))
    steps = config.ppo.epochs * config.ppo.minibatches
    kept, made = adapter_bytes(model, lora, num_chunks > 1 or steps > 1 or num_players > 1)
    activations = activation_bytes(model, lora, tree, logits, itemsize, config.model.remat)
    if num_chunks == 1 or num_chunks * nodes <= config.model.max_nodes:
        activations *= num_players * num_chunks  # else those of one tree at a time
    if config.anchor.coef:
        read = config.anchor.at_once
        logits = read * tokens_at_once(model, layout, read, max_logits)
        remat = config.model.remat
        activations += activation_bytes(model, lora, (read, read), logits, itemsize, remat)
    at_once = 1 if on_cpu else members  # on a CPU they take turns
    copies = layout.mesh.shape["data"]  # of the weights, and of what is not spread over places
    adapters = num_players * (members * kept * (2 if on_cpu else 1) + at_once * made)
    return Footprint(
        weights=copies * weight_bytes(model, itemsize),
        adapters=adapters * (1 if layout.side_by_side else copies),
        activations=at_once * activations,
        rounds=round_bytes(config, at_once),
    )


def free_bytes() -> int | None:
    """Free memory of all devices, or of this machine if it computes itself; None if unknown."""
    if jax.default_backend() == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        return min([*found, *_left_to_container()], default=None)
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("bytes_limit" in one for one in stats):
        return None
    least = min(one["bytes_limit"] - one.get("bytes_in_use", 0) for one in stats)
    return least * len(jax.devices())


def _left_to_container() -> list[int]:
    """What a container's limit (cgroup 2) leaves; nothing if there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (group / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current")
        )
        return [int(limit) - int(used)]
    except (OSError, ValueError):  # the limit may be "max"
        return []


def shortage(needed: Footprint, free: int | None, config: Config, members: int = 1) -> str | None:
    """A line that says what to lower if more is needed than is free; None otherwise."""
    if free is None or sum(needed) <= free:
        return None
    part = max(needed._fields, key=lambda name: getattr(needed, name))
    smaller = "set model.quantisation to nf4 or take a smaller model.source"
    if config.model.quantisation == "nf4":
        smaller = "take a smaller model.source"
    trees = f"lower model.max_nodes ({config.model.max_nodes:,}) or env.memory"
    if config.ppo.level == "token":
        trees = f"lower env.episodes ({config.env.episodes:,})"
    if config.thinking.tokens:
        thoughts, tokens = config.thinking.thoughts, config.thinking.tokens
        trees = f"lower thinking.thoughts ({thoughts}) or thinking.tokens ({tokens})"
    if config.model.remat != "block":
        trees = f"set model.remat to block or {trees}"
    rank = f"lower lora.rank ({config.lora.rank:,})"
    if config.lora.adapter is not None:
        rank = "start from an adapter of a lower rank"
    advice = {
        "weights": smaller,
        "adapters": f"{rank} or train fewer members at once" if members > 1 else rank,
        "activations": trees,
        "rounds": f"lower env.episodes ({config.env.episodes:,})",
    }[part]
    return (
        f"warning    about {sum(needed) / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free;"
        f" {getattr(needed, part) / GIB:.1f} GiB are for {part}: {advice}"
    )
