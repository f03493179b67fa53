"""Finds a model, converts it once into a cache, and loads it from there.

A source is the name of a model that a Python package carries (`PACKAGED`), the path of a GGUF file,
a folder in Hugging Face layout, or a hub id. The first load of a GGUF dequantises the weights,
stacks them over layers and builds the tokenizer, which takes a while; the cache keeps the result
under the file's SHA-256.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub
import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError

from jaxmoral.devices.mesh import Layout
from jaxmoral.errors import UserError
from jaxmoral.files import scratch_beside
from jaxmoral.models import huggingface, packaged
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.assemble import assemble
from jaxmoral.models.config import DecoderConfig, from_json
from jaxmoral.models.foreign import COMMIT, bare
from jaxmoral.models.gguf_file import GGUFModel
from jaxmoral.models.hf_config import describe
from jaxmoral.models.model import Decoder
from jaxmoral.models.packaged import PACKAGED
from jaxmoral.models.peft import is_adapter
from jaxmoral.models.rows import RowTable

if TYPE_CHECKING:
    import transformers

# How vocabularies write the end of a turn, and of a text.
_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
_FORMAT = 3  # of a converted model's folder; another number makes a new conversion
_WORTH_KEEPING = 0.1  # seconds that compiling a program takes; JAX would say 1


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use: its definition, its frozen weights, its tokenizer, its identity.

    `source` is what `load` was given; of a hub id, with the commit that was read.
    `sha256` is the digest of a GGUF file; of a folder, what `huggingface.identity` says of it, or
    if a run of version 0.1 asks for it, the first part of that.
    `module` is where transformers' model of the same files has its layers.
    `generation` is `generation_config.json`, or what stands for it in other files.
    `beside` is `[vocab_size, num_layers * per_layer_dim]`, what layers read of each token beside
    the stream, on the disk; None of models whose layers do not.
    """

    source: str
    sha256: str
    config: DecoderConfig
    definition: nnx.GraphDef
    weights: nnx.State
    tokenizer: "transformers.PreTrainedTokenizerFast"
    module: str = "model."
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: RowTable | None = None

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


class Opened(NamedTuple):
    """A model whose weights are not read yet, so that it can be asked where they should go.

    Attributes:
      model: with shapes in place of the weights.
      read: from the layout that they get (None: the default device) to the model with them.
    """

    model: LoadedModel
    read: Callable[[Layout | None], LoadedModel]


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
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def load(
    source: str,
    dtype: str = "float32",
    sha256: str | None = None,
    quantisation: str | None = None,
) -> LoadedModel:
    """Loads a model to the default device; see `open_model`."""
    return open_model(source, dtype, sha256, quantisation).read(None)


def open_model(
    source: str,
    dtype: str = "float32",
    sha256: str | None = None,
    quantisation: str | None = None,
) -> Opened:
    """Finds a model and reads all but its weights; a GGUF file is converted on the first call.

    Args:
      source: a name in `PACKAGED`, the path of a GGUF file, the path of a folder in
        Hugging Face layout, or a hub id "owner/name" or "owner/name@revision".
      dtype: of the weights and activations, "float32" or "bfloat16".
      sha256: the digest the model must have, if known; see `LoadedModel`.
      quantisation: of the matrices, "int8" or "nf4"; None keeps them as they are.

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
        return _open_huggingface(source, path, dtype, sha256, quantisation)
    return _open_converted(source, folder, _checked(source, digest, sha256), dtype, quantisation)


def same_model(one: str | None, other: str | None) -> bool:
    """Whether two identities are of one model, as far as they tell.

    Runs of version 0.1 know nothing of a folder's values.
    """
    if one is None or other is None:
        return one is other
    (contents, _, values), (others, _, known) = one.partition("-"), other.partition("-")
    return contents == others and (values == known or not (values and known))


def _checked(source: str, digest: str, expected: str | None) -> str:
    """What a model is known by: the digest that it must have, if there is one."""
    if expected is not None and not same_model(digest, expected):
        raise UserError(
            f"model.source: {source} was altered or replaced: its digest is {digest}, not"
            f" {expected}, as model.sha256 says"
        )
    return expected or digest


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
    try:
        weights = dict(model.weights())
        vocabulary, config = model.vocabulary(), model.config()
    except UserError:  # says it all
        raise
    except (KeyError, ValueError, NotImplementedError) as error:
        raise UserError(f"model: {path} is not a complete model ({error})") from error
    with scratch_beside(folder) as scratch:
        safetensors.numpy.save_file(weights, scratch / "weights.safetensors")
        tokenizers.save(tokenizers.build(vocabulary), scratch / "tokenizer")
        (scratch / "generation_config.json").write_text(
            json.dumps(vocabulary.generation), encoding="utf-8"
        )
        (scratch / "config.json").write_text(
            json.dumps(dataclasses.asdict(config)), encoding="utf-8"
        )
        try:
            scratch.rename(folder)
        except OSError:  # another process may have put the same there meanwhile
            if not folder.is_dir():
                raise


def _open_converted(
    source: str, folder: Path, digest: str, dtype: str, quantisation: str | None
) -> Opened:
    with _undamaged(folder):
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = from_json(sizes | {"quantisation": quantisation})
        tokenizer = tokenizers.load(folder / "tokenizer")
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        empty = LoadedModel(
            source, digest, config, *Decoder.abstract(config), tokenizer, generation=generation
        )

    def read(layout: Layout | None) -> LoadedModel:
        with (
            _undamaged(folder),
            safetensors.safe_open(folder / "weights.safetensors", framework="numpy") as file,
        ):
            definition, weights = assemble(config, _converted_parts(file), dtype, layout)
        return dataclasses.replace(empty, definition=definition, weights=weights)

    return Opened(empty, read)


@contextmanager
def _undamaged(folder: Path) -> Iterator[None]:
    """Raises UserError where reading a conversion fails."""
    try:
        yield
    except UserError:  # says it all
        raise
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(
            f"model.source: the cached conversion in {folder} is damaged ({error}); delete it"
        ) from error


def _converted_parts(file: Any) -> Iterator[tuple[str, Any, np.ndarray]]:
    for name in file.keys():  # noqa: SIM118 (not a dict)
        tensor = file.get_slice(name)
        in_parts = name.startswith("blocks.")
        for index in range(tensor.get_shape()[0]) if in_parts else [...]:
            yield name, index, tensor[index]


def _open_huggingface(
    source: str, folder: Path, dtype: str, sha256: str | None, quantisation: str | None
) -> Opened:
    if is_adapter(folder):
        raise UserError(
            f"model.source: {folder} holds a PEFT adapter; give its base as model.source and the"
            " folder as lora.adapter"
        )
    described = describe(folder)
    config = dataclasses.replace(described.config, quantisation=quantisation)
    digest = _checked(source, huggingface.identity(folder), sha256)
    tokenizer = huggingface.read_tokenizer(folder, config)
    empty = LoadedModel(
        source,
        digest,
        config,
        *Decoder.abstract(config),
        tokenizer,
        described.module,
        huggingface.read_generation(folder, described),
        huggingface.beside(folder, config),
    )

    def read(layout: Layout | None) -> LoadedModel:
        parts = huggingface.weights(folder, config)
        definition, weights = assemble(config, parts, dtype, layout)
        return dataclasses.replace(empty, definition=definition, weights=weights)

    return Opened(empty, read)
