"""Finds a model, converts it once into a cache, and loads it from there.

A source is the name of a model that a Python package carries (`PACKAGED`), the path of a GGUF file,
a folder in Hugging Face layout, or a hub id. The first load of a GGUF dequantises the weights,
stacks them over layers and builds the tokenizer, which takes a while; the cache keeps the result
under the file's SHA-256.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import transformers
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError
from jax.sharding import SingleDeviceSharding

from jaxmoral.devices.mesh import Layout, split_by_rules
from jaxmoral.errors import UserError
from jaxmoral.models import huggingface, packaged
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.config import DecoderConfig, from_json
from jaxmoral.models.foreign import COMMIT, bare
from jaxmoral.models.gguf_file import GGUFModel
from jaxmoral.models.hf_config import describe
from jaxmoral.models.model import Decoder
from jaxmoral.models.packaged import PACKAGED
from jaxmoral.models.peft import is_adapter
from jaxmoral.models.quantise import quantise

# How vocabularies write the end of a turn, and of a text.
_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
_FORMAT = 3  # of a converted model's folder; another number makes a new conversion


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use: its definition, its frozen weights, its tokenizer, its identity.

    `source` is what `load` was given; of a hub id, with the commit that was read.
    `sha256` is the digest of a GGUF file; of a folder, the digest of its configuration and of its
    files' sizes and tables of contents (hashing tens of gigabytes would take minutes a start).
    `module` is where transformers' model of the same files has its layers.
    `generation` is `generation_config.json`, or what stands for it in other files.
    """

    source: str
    sha256: str
    config: DecoderConfig
    definition: nnx.GraphDef
    weights: nnx.State
    tokenizer: "transformers.PreTrainedTokenizerFast"
    module: str = "model."
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bos_token(self) -> int | None:
        """The token that begins every text; None of models whose texts begin with nothing."""
        bos = self.tokenizer.bos_token_id
        return bos if self.config.needs_bos or self.tokenizer.encode("")[:1] == [bos] else None

    def stop_tokens(self) -> list[int]:
        """The tokens that end a response: the end of the text, of a turn, and the files' own."""
        tokenizer = self.tokenizer
        found = {name: tokenizer.convert_tokens_to_ids(name) for name in _ENDS}
        ends = {tokenizer.eos_token_id, *huggingface.stop_tokens(self.generation)} - {None}
        for name, token in found.items():  # an unknown one is None, or the token of unknown text
            if token is not None and tokenizer.convert_ids_to_tokens(token) == name:
                ends.add(token)
        return sorted(ends)


LayoutFor = Callable[[LoadedModel], Layout | None]


def cache_folder() -> Path:
    """Where converted models are kept: $JAXMORAL_CACHE, or jaxmoral in the user's cache folder."""
    if folder := os.environ.get("JAXMORAL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxmoral"


def converted_folder(digest: str) -> Path:
    """Where the conversion of the GGUF file with this digest is kept."""
    return cache_folder() / f"{digest[:16]}-{_FORMAT}"


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the cache folder, unless the user chose another place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def load(
    source: str,
    dtype: str = "float32",
    sha256: str | None = None,
    quantisation: str | None = None,
    layout_for: LayoutFor = lambda model: None,
) -> LoadedModel:
    """Loads a model; a GGUF file is converted on the first call.

    Args:
      source: a name in `PACKAGED`, the path of a GGUF file, the path of a folder in
        Hugging Face layout, or a hub id "owner/name" or "owner/name@revision".
      dtype: of the weights and activations, "float32" or "bfloat16".
      sha256: the digest the model must have, if known; see `LoadedModel`.
      quantisation: of the matrices, "int8" or "nf4"; None keeps them as they are.
      layout_for: where the weights go of a model, which is given with shapes in place of them;
        None is the default device. What it raises ends the loading.

    Raises:
      UserError: no such source, its package is not installed, or a file is damaged or altered.
    """
    path = Path(source)
    if source in PACKAGED:
        folder, digest = _packaged(source)
    elif path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        folder = converted_folder(digest)
        if sha256 in (None, digest) and not folder.is_dir():
            _convert(path, folder)
    else:
        if not path.is_dir():
            source, path = _from_hub(source)
        return _read_huggingface(source, path, dtype, sha256, quantisation, layout_for)
    _check_digest(source, digest, sha256)
    return _read_converted(source, folder, digest, dtype, quantisation, layout_for)


def _check_digest(source: str, digest: str, expected: str | None) -> None:
    if expected not in (None, digest):
        raise UserError(
            f"model.source: {source} was altered or replaced: its SHA-256 is {digest[:16]}..., not"
            f" {str(expected)[:16]}... as model.sha256 says"
        )


def _from_hub(source: str) -> tuple[str, Path]:
    """The source with the commit it stands for today, and its files, downloaded or cached."""
    name, _, revision = source.partition("@")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise UserError(
            f"model.source: there is no file or folder {bare(source)}; packaged models are"
            f" {', '.join(PACKAGED)}"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"model.source: {source!r} is neither a file, nor a folder, nor a hub id owner/name,"
            f" nor one of {', '.join(PACKAGED)}"
        )
    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json", "*.jinja", "generation_config.json"]
    wanted += ["adapter_config.json"]  # a whole model has none
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=wanted
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = type(error).__name__
        raise UserError(
            f"model.source: there is no folder {source}, and it cannot be had from the Hugging"
            f" Face hub ({reason}); log in with `hf auth login` if it needs a licence, or download"
            " its *.json, *.jinja and *.safetensors files to a folder and give that folder"
        ) from None
    return f"{name}@{Path(path).name}", Path(path)


def same_base(asked: str, read: str) -> bool:
    """Whether a hub id, perhaps with a branch or tag, may be the commit `read` of the same name."""
    (name, _, revision), (known, _, commit) = asked.partition("@"), read.partition("@")
    return name == known and bool(commit) and (revision == commit or not COMMIT.fullmatch(revision))


def _packaged(source: str) -> tuple[Path, str]:
    digest = packaged.digest(source)
    folder = converted_folder(digest)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            _convert(packaged.find(source, Path(scratch)), folder)
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
        except UserError:  # says it all
            raise
        except (KeyError, ValueError, NotImplementedError) as error:
            raise UserError(f"model: {path} is not a complete model ({error})") from error
        safetensors.numpy.save_file(weights, scratch / "weights.safetensors")
        tokenizers.save(tokenizers.build(vocabulary), scratch / "tokenizer")
        (scratch / "generation_config.json").write_text(json.dumps(vocabulary.generation))
        (scratch / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path) -> None:
    """Moves a finished folder from `tempfile.mkdtemp` to its place, readable like any other.

    Another process may have put the same content there meanwhile; then this one is not needed.
    """
    scratch.chmod(0o755)
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _read_converted(
    source: str,
    folder: Path,
    digest: str,
    dtype: str,
    quantisation: str | None,
    layout_for: LayoutFor,
) -> LoadedModel:
    try:
        sizes = json.loads((folder / "config.json").read_text())
        config = from_json(sizes | {"quantisation": quantisation})
        tokenizer = tokenizers.load(folder / "tokenizer")
        generation = json.loads((folder / "generation_config.json").read_text())
        empty = LoadedModel(
            source, digest, config, *Decoder.abstract(config), tokenizer, generation=generation
        )
        with safetensors.safe_open(folder / "weights.safetensors", framework="numpy") as file:
            layout = layout_for(empty)
            definition, weights = assemble(config, _converted_parts(file), dtype, layout)
    except UserError:  # of the layout
        raise
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(
            f"model.source: the cached conversion in {folder} is damaged ({error}); delete it"
        ) from error
    return dataclasses.replace(empty, definition=definition, weights=weights)


def _converted_parts(file: Any) -> Iterator[tuple[str, Any, np.ndarray]]:
    for name in file.keys():  # noqa: SIM118 (not a dict)
        tensor = file.get_slice(name)
        in_parts = name.startswith("blocks.")
        for index in range(tensor.get_shape()[0]) if in_parts else [...]:
            yield name, index, tensor[index]


def _read_huggingface(
    source: str,
    folder: Path,
    dtype: str,
    sha256: str | None,
    quantisation: str | None,
    layout_for: LayoutFor,
) -> LoadedModel:
    if is_adapter(folder):
        raise UserError(
            f"model.source: {folder} holds a PEFT adapter; give its base as model.source and the"
            " folder as lora.adapter"
        )
    described = describe(folder)
    config = dataclasses.replace(described.config, quantisation=quantisation)
    digest = huggingface.identity(folder)
    _check_digest(source, digest, sha256)
    tokenizer = huggingface.read_tokenizer(folder, config)
    empty = LoadedModel(
        source,
        digest,
        config,
        *Decoder.abstract(config),
        tokenizer,
        described.module,
        huggingface.read_generation(folder, described),
    )
    layout = layout_for(empty)
    parts = huggingface.weights(folder, config)
    definition, weights = assemble(config, parts, dtype, layout)
    return dataclasses.replace(empty, definition=definition, weights=weights)


def assemble(
    config: DecoderConfig,
    parts: Iterable[tuple[str, Any, np.ndarray]],
    dtype: str,
    layout: Layout | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Puts named parts of weights into the module's state, one at a time.

    A process keeps what its own devices hold, and that only until a weight is complete.

    Args:
      config: of the model; says whether matrices are quantised.
      parts: (name, index, numbers), e.g. one layer's matrix and its number.
      dtype: of the matrices, or of the scales of quantised ones; norms are float32.
      layout: where they go; None is the default device.
    """
    definition, abstract = Decoder.abstract(config, layout)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    names = [".".join(str(key.key) for key in path if hasattr(key, "key")) for path, _ in leaves]
    missing = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    begun: dict[str, _Shards] = {}
    finished: dict[str, jax.Array] = {}

    def put(name: str, index: Any, part: np.ndarray) -> None:
        if name not in begun:
            leaf = missing[name]
            kept = name.endswith(".scale") or jnp.issubdtype(leaf.dtype, jnp.integer)
            begun[name] = _Shards(name, leaf.shape, leaf.dtype if kept else dtype, layout)
        begun[name].put(index, part)
        if begun[name].missing == 0:
            finished[name] = begun.pop(name).array()
            del missing[name]

    for name, index, part in parts:
        if config.quantisation is None or name.endswith((".scale", "_bias")):
            put(name, index, part)
        else:
            codes, scales = quantise(part, config.quantisation)
            put(f"{name}.codes", index, codes)
            put(f"{name}.scales", index, scales)
    if missing:
        raise ValueError(f"there is no {', '.join(sorted(missing))}")
    return definition, jax.tree.unflatten(structure, [finished[name] for name in names])


class _Shards:
    """A weight that arrives in parts; this process keeps what its devices hold."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, layout: Layout | None):
        self._name, self._shape = name, shape
        if layout is None:
            self._sharding: Any = SingleDeviceSharding(jax.devices()[0])
        else:
            self._sharding = split_by_rules(name, shape, layout, lead=False)
        self._boxes: dict[jax.Device, tuple] = {}
        self._buffers: dict[tuple, np.ndarray] = {}
        self.missing = math.prod(shape)
        for device, index in self._sharding.addressable_devices_indices_map(shape).items():
            box = tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
            self._boxes[device] = box
            if box not in self._buffers:
                sizes = tuple(stop - start for start, stop in box)
                self._buffers[box] = _aligned_empty(sizes, jnp.dtype(dtype))

    def put(self, index: Any, part: np.ndarray) -> None:
        """Takes a part: everything (...), a place on the first axis, or a slice of it."""
        if isinstance(index, int):
            index, part = slice(index, index + 1), part[None]
        first, last, _ = (slice(None) if index is ... else index).indices(self._shape[0])
        if part.shape != (last - first, *self._shape[1:]):
            expected = (last - first, *self._shape[1:])
            raise ValueError(f"{self._name} has shape {part.shape}, not {expected}")
        self.missing -= part.size
        for box, buffer in self._buffers.items():
            (top, bottom), *rest = box
            start, stop = max(first, top), min(last, bottom)
            if start < stop:
                inner = tuple(slice(*side) for side in rest)
                buffer[start - top : stop - top] = part[
                    (slice(start - first, stop - first), *inner)
                ]

    def array(self) -> jax.Array:
        """The weight on its devices."""
        pieces = [jax.device_put(self._buffers[box], at) for at, box in self._boxes.items()]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, pieces)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that JAX can use on a CPU without copying it (64-byte aligned)."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
