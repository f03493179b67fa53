"""Writes a tiny random Gemma in Hugging Face layout, with a tokenizer of the prompts' words.

    python scripts/tiny_model.py FOLDER

Training, sharding and crashes are tested on it: it starts in seconds and learns to answer legally.
Its labels must be X and Y (--prompt.labels [X,Y]), which it spells with one token.
"""

import dataclasses
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import LoadedModel, assemble
from jaxmoral.models.lora import NO_LORA
from jaxmoral.models.merged import save_merged
from jaxmoral.models.model import Decoder
from jaxmoral.models.rows import RowTable
from jaxmoral.world.games import get_game

LABELS = ("X", "Y")
# Sizes of an even smaller one, with a layer of each kind.
SHALLOW = {"num_layers": 2, "global_layers": (False, True)}
# Sizes of a tiny Gemma 4 whose layers differ: in periods, the last ones without keys of their own.
SHARING = {
    "family": "gemma4",
    "num_layers": 12,
    "global_layers": (False, False, True) * 4,
    "query_scale": 1.0,
    "head_dim_global": 32,
    "num_kv_heads": 1,
    "num_kv_heads_global": 1,
    "rope_base_global": 1e6,
    "rope_share": 0.25,
    "value_norm": True,
    "layer_scalars": True,
    "num_shared": 6,
    "mlp_dim_shared": 256,
    "per_layer_dim": 8,
}
# The same with keys that are values, and experts.
EXPERTS = {name: value for name, value in SHARING.items() if "shared" not in name} | {
    "per_layer_dim": 0,
    "num_kv_heads": 2,
    "keys_are_values": True,
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_dim": 32,
}
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
_CONTROL, _BYTE, _NORMAL = 3, 6, 1


def vocabulary() -> tokenizers.Vocabulary:
    """Every byte, and every word of the prompts with its beginnings, from which it is merged."""
    texts = all_prompts(get_game("ipd"), Presentation(labels=LABELS))
    found = dict.fromkeys(re.findall(r" ?[a-z]+|.", " ".join(texts), re.IGNORECASE))
    words = [word.replace(" ", tokenizers.SPACE) for word in found]
    starts = (word[:size] for word in words for size in range(1, len(word) + 1))
    pieces = dict.fromkeys(itertools.chain((word for w in words for word in w), starts))
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    everything = [*SPECIAL, *raw, *pieces]
    kinds = [_CONTROL] * len(SPECIAL) + [_BYTE] * len(raw) + [_NORMAL] * len(pieces)
    return tokenizers.Vocabulary(
        pieces=everything,
        scores=np.array([float(len(piece)) for piece in everything], np.float32),
        types=np.array(kinds, np.int32),
        bos=2,
        eos=1,
        unk=3,
        pad=0,
    )


def sizes_with(words: tokenizers.Vocabulary, **sizes: Any) -> DecoderConfig:
    """The configuration of a model of so many words, changed by `sizes`."""
    config = DecoderConfig(
        family="gemma3",
        vocab_size=-(-len(words.pieces) // 8) * 8,
        embed_dim=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=128,
        sliding_window=64,
        global_layers=(False, False, True, False),
        query_scale=0.25,
        qk_norm=True,
    )
    return dataclasses.replace(config, **sizes)


def make(seed: int = 0, **sizes: Any) -> LoadedModel:
    """The model, its configuration changed by `sizes`; two calls make the same."""
    words = vocabulary()
    config = sizes_with(words, **sizes)
    random = np.random.default_rng(seed)
    _, abstract = Decoder.abstract(config)
    parts = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
        name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
        noise = random.standard_normal(leaf.shape, np.float32)
        is_scale = name.endswith((".scale", "_scale", "_scalar"))
        weight = 1 + 0.3 * noise if is_scale else 0.15 * noise
        if name.endswith("q_norm.scale") and config.query_scale == 1:
            weight *= config.head_dim**-0.5  # as trained ones do; sharper attention is chaotic
        parts.append((name, ..., weight))
    definition, weights = assemble(config, parts, "float32")
    beside = None
    if config.per_layer_dim:
        shape = config.vocab_size, config.num_layers * config.per_layer_dim
        beside = RowTable(random.standard_normal(shape, np.float32))
    tokenizer = tokenizers.build(words)
    return LoadedModel("tiny", "", config, definition, weights, tokenizer, beside=beside)


def write(folder: Path, seed: int = 0, **sizes: Any) -> None:
    """Writes the model of `make`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_merged(folder, make(seed, **sizes), {}, NO_LORA)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
