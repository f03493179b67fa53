"""A decoder so small that everything it can think may be enumerated, shared by tests."""

import dataclasses
import itertools

import jax
import numpy as np

from jaxmoral.language.prompt_tree import merge, pad
from jaxmoral.language.responses import index_pieces, spell
from jaxmoral.language.thought_tree import Thoughts, grow, paths
from jaxmoral.learning.channel import Thinking
from jaxmoral.learning.language_policy import PackedPrompts
from jaxmoral.learning.thinking_policy import ThinkingPolicy
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import assemble
from jaxmoral.models.lora import Lora
from jaxmoral.models.model import Decoder
from jaxmoral.models.sample import Prefixes

PIECES = [None, None, b"a", b"b", b"c", b"d", b"e"]
STOP, ROOM, CUE = 1, 2, (6, 3)
# Two share a beginning, one goes on where another ends.
PROMPTS = [[0, 6, 2, 3, 4], [0, 6, 2, 5], [0, 6, 2, 5, 5, 4]]
RESPONSES = spell([b"ab", b"cd"], index_pieces(PIECES), [STOP], 2)


def decoder(seed=0, **sizes):
    """(config, definition, weights) of a random decoder of seven tokens, Gemma 3 unless told."""
    config = DecoderConfig(
        family="gemma3",
        vocab_size=len(PIECES),
        embed_dim=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        sliding_window=4,
        global_layers=(False, True, False),
        query_scale=0.35,
        final_softcap=3.0,
    )
    config = dataclasses.replace(config, **sizes)
    random = np.random.default_rng(seed)
    parts = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(Decoder.abstract(config)[1])[0]:
        name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
        noise = random.standard_normal(leaf.shape, np.float32)
        parts.append((name, ..., 1 + 0.3 * noise if name.endswith(".scale") else 0.3 * noise))
    return config, *assemble(config, parts, "float32")


def thinker(thoughts, chunks=1, room=ROOM, dropout=0.0, **sizes):
    """A thinking policy, its weights, its prompts in so many trees, and noisy parameters."""
    config, definition, weights = decoder(**sizes)
    around = Thinking(room, thoughts, "", "", "", (STOP,), CUE)
    lora = Lora(2, 4.0, dropout, ("q", "v", "down"))
    policy = ThinkingPolicy(config, definition, lora, thinking=around)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    trainable = jax.tree.map(noise, policy.init(jax.random.key(0)))
    each = len(PROMPTS) // chunks
    parts = [PROMPTS[start : start + each] for start in range(0, len(PROMPTS), each)]
    inputs = [pack_thinker(prompts, thoughts, room) for prompts in parts]
    return policy, weights, jax.tree.map(lambda *x: np.stack(x), *inputs), trainable


def pack_thinker(prompts, thoughts, room):
    """One tree, padded to sizes that have room for any of the prompts."""
    grown = grow(
        prompts,
        RESPONSES.prefixes,
        num_thoughts=thoughts,
        room=room,
        cue=CUE,
        first_free=len(PIECES),
    )
    alone, last = merge(prompts)
    lengths = np.array([len(ids) for ids in prompts], np.int32)
    tokens = np.array([ids + [0] * (6 - len(ids)) for ids in prompts], np.int32)
    size = sum(map(len, PROMPTS)) + len(prompts) * thoughts * (room + len(CUE) + 4)
    return PackedPrompts(
        tree=pad(grown.tree, size, 6 + room + len(CUE) + 1),
        nodes=grown.nodes,
        trie=RESPONSES.trie,
        tokens=tokens,
        lengths=lengths,
        branches=grown.branches,
        alone=Prefixes(pad(alone, 20, 5), paths(alone, last, 6), lengths),
    )


def every_thought():
    """All that can be thought in two tokens, `[1, number, 2]` tokens and `[1, number]` lengths."""
    others = [token for token in range(len(PIECES)) if token != STOP]
    pairs = [(STOP, 0), *itertools.product(others, range(len(PIECES)))]
    lengths = [0 if first == STOP else 1 if second == STOP else 2 for first, second in pairs]
    return np.array([pairs], np.int32), np.array([lengths], np.int32)


def everywhere():
    """`every_thought` at each prompt."""
    tokens, lengths = every_thought()
    count = len(PROMPTS)
    return Thoughts(np.repeat(tokens, count, axis=0), np.repeat(lengths, count, axis=0))
