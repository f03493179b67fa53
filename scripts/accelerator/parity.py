"""Whether a device computes what a CPU does: log-probabilities and LoRA gradients of tiny models.

The reference is the CPU in float32, with matrix products of the highest precision. What bfloat16
costs by itself the CPU says too; a device may add little to that.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny_model

from accelerator.stand_in import REAL, cast
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.prompter import Prompter
from jaxmoral.models.config import Ramp
from jaxmoral.models.load import LoadedModel, load
from jaxmoral.models.lora import Lora
from jaxmoral.world.games import get_game

_PLAIN: dict[str, Any] = {"post_norms": False, "qk_norm": False, "scaled_embedding": False}
_PLAIN |= {"activation": "silu"}
_EVERYWHERE = {"global_layers": (True,) * 4}
_CAPS = {"attention_softcap": 3.0, "final_softcap": 2.0}
_QKV = ("q", "k", "v")
# What each family's tiny model has that the tiny Gemma 3 has not.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {"family": "gemma", "post_norms": False, "qk_norm": False, **_EVERYWHERE},
    "gemma2": {"family": "gemma2", "qk_norm": False, **_CAPS},
    "gemma3": {"family": "gemma3"},
    "gemma4": tiny_model.SHARING,
    "gemma4-experts": tiny_model.EXPERTS,
    "llama": {"family": "llama", **_PLAIN, **_EVERYWHERE, "rope_ramp": Ramp(1.0, 4.0, 64.0)},
    "mistral": {"family": "mistral", **_PLAIN, "global_layers": (False,) * 4},
    "qwen2": {"family": "qwen2", **_PLAIN, "biases": _QKV, "tied": False},
    "qwen3": {"family": "qwen3", **_PLAIN, "qk_norm": True, **_EVERYWHERE},
}


class Answers(NamedTuple):
    """What is compared: `[num_prompts, 3]` log-probabilities, and a gradient of all weights."""

    log_probs: np.ndarray
    gradient: np.ndarray


def compare(model: LoadedModel, device: jax.Device, cpu: jax.Device) -> dict[str, Any]:
    """The differences of one model from the CPU in float32, by dtype, `TOLERANCES`' two kinds each.

    In bfloat16 both read the same rounded weights, and beside the device's differences are those
    of the CPU's own bfloat16 ("rounding"). In float32 there is nothing to compare if the device is
    the CPU.
    """
    found: dict[str, Any] = {}
    if device != cpu:
        right = answers(model, model.weights, cpu)
        found["float32"] = difference(answers(model, model.weights, device), right)
    rounded = cast(model.weights, "bfloat16")
    right = answers(model, cast(rounded, "float32"), cpu)
    own = difference(answers(model, rounded, cpu), right)
    theirs = own if device == cpu else difference(answers(model, rounded, device), right)
    found["bfloat16"] = theirs | {"rounding": own}
    return found


def difference(found: Answers, right: Answers) -> dict[str, float]:
    """The largest of the log-probabilities, and the gradients' distance relative to the norm."""
    distance = np.linalg.norm(found.gradient - right.gradient)
    return {
        "log_prob": float(np.abs(found.log_probs - right.log_probs).max()),
        "gradient": float(distance / np.linalg.norm(right.gradient)),
    }


def answers(model: LoadedModel, weights: Any, device: jax.Device) -> Answers:
    """What a device makes of a model with these weights and an adapter that changes it."""
    config = model.config
    presentation = Presentation(labels=tiny_model.LABELS)
    packed = Prompter(model, "plain").pack([[Condition(get_game("ipd"), presentation)]])
    inputs = jax.tree.map(lambda leaf: leaf[0], packed)
    lora = Lora(4, 8.0, 0.0, config.linear_names)
    policy = LanguagePolicy(config, model.definition, lora, beside=model.beside)
    with jax.default_device(jax.devices("cpu")[0]):
        trainable = _changed(policy.init(jax.random.key(0)))

    def told(trainable: Any, frozen: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        log_probs = policy.bind(frozen, inputs).table(trainable).log_probs
        return jnp.sum(log_probs), log_probs

    arguments = jax.device_put((trainable, weights, inputs), device)
    on_device = jax.default_device(device) if device.platform == "cpu" else contextlib.nullcontext()
    with jax.default_matmul_precision("highest"), on_device:
        gradient, log_probs = jax.jit(jax.grad(told, has_aux=True))(*arguments)
    leaves = jax.tree.leaves(jax.device_get(gradient["adapter"]))
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return Answers(np.asarray(log_probs, np.float64), flat)


def _changed(trainable: Any) -> Any:
    """Parameters whose adapter's second matrices are not zero any more."""
    random = np.random.default_rng(0)
    noisy = lambda leaf: leaf + 0.02 * random.standard_normal(leaf.shape).astype(np.float32)
    return trainable | {"adapter": jax.tree.map(noisy, trainable["adapter"])}


def measure(tiny: bool = False) -> dict[str, Any]:
    """The differences of every family's tiny model and, if it is installed, of the real one.

    If that is too much, of two families.
    """
    device, cpu = jax.local_devices()[0], jax.devices("cpu")[0]
    names = ("gemma3", "qwen2") if tiny else tuple(FAMILIES)
    found: dict[str, Any] = {
        name: compare(tiny_model.make(**FAMILIES[name]), device, cpu) for name in names
    }
    if not tiny:
        try:
            found[REAL] = compare(load(REAL, "float32"), device, cpu)
        except UserError as missing:
            found[REAL] = {"failed": str(missing)}
    return found
