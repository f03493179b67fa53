"""Agents whose base has a model's shapes and random weights, made where they stay."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tiny_model
import transformers

from jaxmoral.devices.mesh import Layout, split_by_rules
from jaxmoral.errors import UserError
from jaxmoral.models import packaged
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import LoadedModel, Opened, converted_folder, load
from jaxmoral.models.model import Decoder

REAL = "gemma3-270m"


@functools.cache
def tokenizer(tiny: bool) -> tuple["transformers.PreTrainedTokenizerFast", bool]:
    """The real model's (true) if its package is installed, else of the prompts' words (false)."""
    if not tiny:
        try:
            folder = converted_folder(packaged.digest(REAL))
            if not folder.is_dir():
                load(REAL)
            return tokenizers.load(folder / "tokenizer"), True
        except UserError:
            pass
    return tokenizers.build(tiny_model.vocabulary()), False


def opener(config: DecoderConfig, words: Any, *, empty: bool = False) -> Callable[..., Opened]:
    """What `make_agent` opens a model of these shapes with, instead of a file.

    Args:
      config: of the model.
      words: its tokenizer.
      empty: whether its weights stay shapes, for an agent that is looked at and never run.
    """

    def open_model(source: str, dtype: str, sha256: Any, quantisation: Any) -> Opened:
        shaped = dataclasses.replace(config, quantisation=quantisation)
        model = LoadedModel("random", "", shaped, *Decoder.abstract(shaped), words)

        def read(layout: Layout | None) -> LoadedModel:
            if empty:
                return model
            definition, shapes = Decoder.abstract(shaped, layout)
            assert layout is not None
            weights = random_weights(shapes, dtype, layout)
            return dataclasses.replace(model, definition=definition, weights=weights)

        return Opened(model, read)

    return open_model


def random_weights(shapes: Any, dtype: str, layout: Layout) -> Any:
    """Weights of these shapes on the layout's devices, none of which was ever on the host.

    The largest come first, while there is room for what they are made from; those stacked over
    layers are made one layer after the other.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    made: dict[int, jax.Array] = {}
    key = jax.random.key(0, impl="rbg")
    for place in sorted(range(len(leaves)), key=lambda place: -leaves[place][1].size):
        path, leaf = leaves[place]
        name = name_of(path)
        kind = leaf.dtype if _kept(name, leaf) else jnp.dtype(dtype)
        where = split_by_rules(name, leaf.shape, layout, lead=False)
        fill = functools.partial(_fill, name=name, shape=leaf.shape, dtype=kind)
        program = jax.jit(fill, out_shardings=where)
        made[place] = jax.block_until_ready(program(jax.random.fold_in(key, place)))
    return jax.tree.unflatten(structure, [made[place] for place in range(len(leaves))])


def _fill(key: jax.Array, *, name: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random numbers that keep activations near 1; codes of quantised matrices are any bits."""
    if name.endswith((".scale", "_scale", "_scalar")):
        return jnp.ones(shape, dtype)
    if name.endswith(".scales"):
        return jnp.full(shape, 0.03, dtype)
    if len(shape) > 2:
        keys = jax.random.split(key, shape[0])
        inner = functools.partial(_fill, name=name, shape=shape[1:], dtype=dtype)
        return jax.lax.map(inner, keys)
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, "uint8"), dtype)
    return jax.random.normal(key, shape, dtype) * jnp.asarray(shape[-1] ** -0.5, dtype)


def cast(weights: Any, dtype: str) -> Any:
    """Weights in another dtype, as they would be loaded in it."""
    change = lambda path, leaf: leaf if _kept(name_of(path), leaf) else leaf.astype(dtype)
    return jax.tree_util.tree_map_with_path(change, weights)


def name_of(path: Any) -> str:
    """A weight's name, as `models.assemble` knows it."""
    return ".".join(str(key.key) for key in path if hasattr(key, "key"))


def _kept(name: str, leaf: Any) -> bool:
    """Whether a weight has its own dtype, whatever the model's is."""
    return name.endswith(".scale") or jnp.issubdtype(leaf.dtype, jnp.integer)
