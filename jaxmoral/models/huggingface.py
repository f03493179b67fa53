"""Reads a text model from a folder in Hugging Face layout.

`config.json`, safetensors (one file, or shards with an index) and a tokenizer; the layouts of
Gemma 3 and 4 that see or hear are read too, their text part alone. Tensors are read one at a time,
so the host never holds the model twice.

The folder may be a stranger's: no pickle is opened, no code of its is run, and no file outside it
is read, whatever its files ask for. Only symbolic links are followed; the hub's cache is made so.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import safetensors
from tokenizers import Tokenizer

from jaxmoral.errors import UserError
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.foreign import bare, check_keys, shown
from jaxmoral.models.hf_config import Described, read_settings, read_text
from jaxmoral.models.layers import weight_name
from jaxmoral.models.rows import RowTable
from jaxmoral.models.tensor_names import (
    TABLE,
    as_ours,
    block_tensors,
    other_tensors,
    stored_shapes,
    unused,
)

if TYPE_CHECKING:
    import transformers

# The special tokens that have a role, and what Gemma calls them if the folder does not say.
_ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
# What `tokenizer_config.json` says that changes no token of a prompt. Which tokens surround a text
# is decided by who encodes it (see `jaxmoral.learning.speller.Speller`).
_HARMLESS = (
    *("*_token", "*_token_id", "chat_template", "response_schema", "added_tokens_decoder"),
    *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
    *("tokenizer_class", "processor_class", "backend", "is_local", "legacy", "use_fast"),
    *("from_slow", "local_files_only", "errors"),
    *("model_max_length", "max_length", "vocab_size", "padding*", "truncation*", "stride"),
    *("pad_to_multiple_of", "clean_up_tokenization_spaces", "spaces_between_special_tokens"),
    *("sp_model_kwargs", "use_default_system_prompt", "name_or_path", "tokenizer_file"),
    *("special_tokens_map_file", "unsloth_*", "pad_token_type_id", "model_input_names"),
)
_HEAD = re.compile(r"(?:.*\.)?lm_head\.weight")
_CHUNK = 2**22  # numbers of the embedding that are read at once
_PLACE = 1024  # bytes of a file that are looked at in one place
# What safetensors calls the numbers that weights can be.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def check_tensor(tensor: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless an open tensor has this shape and holds floating-point numbers."""
    if tuple(tensor.get_shape()) != shape:
        raise ValueError(f"{name} has shape {shown(tuple(tensor.get_shape()))}, expected {shape}")
    if tensor.get_dtype() not in _DTYPES:
        raise ValueError(f"{name} holds {tensor.get_dtype()}, expected {', '.join(_DTYPES)}")


class TensorFiles:
    """The safetensors of a folder: which file holds which tensor."""

    def __init__(self, folder: Path):
        """Raises UserError if there are none, one is missing, or one is damaged."""
        self._folder = folder
        self.files: dict[str, Path] = {}
        self._head: str | None = None
        for shard in _shards(folder):
            path = folder / shard
            if not shard.endswith(".safetensors") or not path.is_file():
                raise UserError(
                    f"model: {folder / bare(shard)} is missing or no safetensors file (the"
                    " only kind that is opened)"
                )
            for name in self._open(path).keys():  # noqa: SIM118 (not a dict)
                if name in self.files:
                    raise UserError(
                        f"model: {bare(name)} stands in {self.files[name]} and in {path}"
                    )
                self.files[name] = path
        embeddings = [name for name in self.files if name.endswith("embed_tokens.weight")]
        if not embeddings:
            raise UserError(f"model: {folder} holds no tensor embed_tokens.weight")
        # "model.", or "model.language_model." and the like in a vision-language checkpoint.
        self._prefix = embeddings[0].removesuffix("embed_tokens.weight")

    def _open(self, path: Path):
        try:
            return safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"model: {path} is not a complete safetensors file ({bare(error)})"
            ) from None

    def check(
        self, shapes: dict[str, tuple[int, ...]], tied: bool, unused: re.Pattern[str] | None
    ) -> None:
        """Raises UserError unless the model is of these tensors, all of floats, and no others.

        An output head of the embedding's shape must be there unless it is `tied`; then there may
        be one that equals the embedding. Tensors whose names match `unused` may be there.

        Nothing is read, or made room for, before it is known that everything is there.
        """
        opened = {path: self._open(path) for path in set(self.files.values())}
        expected = {self._prefix + name: shape for name, shape in shapes.items()}
        for name, shape in expected.items():
            if name not in self.files:
                raise UserError(
                    f"model: {self._folder} holds no tensor {bare(name)}, expected {shape}"
                )
            path = self.files[name]
            try:
                check_tensor(opened[path].get_slice(name), bare(name), shape)
            except ValueError as error:
                raise UserError(f"model: {path}: {error}") from None
        heads = []
        for name, path in self.files.items():
            if _HEAD.fullmatch(name):
                heads.append(name)
            elif name not in expected and not (unused and unused.fullmatch(name)):
                raise UserError(f"model: {path}: unexpected tensor {bare(name)}")
        for name in heads:
            self._check_head(name, tied)
        if not heads and not tied:
            raise UserError(
                f"model: {self._folder}: config.json says tie_word_embeddings false, but there is"
                " no lm_head.weight"
            )
        if len(heads) > 1 and not tied:
            raise UserError(f"model: {self._folder} holds {bare(' and '.join(sorted(heads)))}")
        self._head = heads[0] if heads else None

    def _check_head(self, name: str, tied: bool) -> None:
        """Raises UserError if an output head has another shape, or should be the embedding."""
        head, embedding = self._slice_of(name), self._slice("embed_tokens.weight")
        shape = tuple(embedding.get_shape())
        try:
            check_tensor(head, bare(name), shape)
        except ValueError as error:
            raise UserError(f"model: {self.files[name]}: {error}") from None
        for rows in _row_parts(shape) if tied else ():
            one, other = (part[rows].astype(np.float32) for part in (head, embedding))
            if not np.array_equal(one, other):
                raise UserError(
                    f"model: {self.files[name]}: {bare(name)} differs from the embedding, but by"
                    " tie_word_embeddings in config.json they are one"
                )

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor of the text model."""
        return self._slice(name)[:]

    def mapped(self, name: str) -> np.ndarray:
        """A tensor of the text model that stays in its file; what is asked for is read."""
        full = f"{self._prefix}{name}"
        path = self.files[full]
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(length))[full]
        start = 8 + length + about["data_offsets"][0]
        return np.memmap(path, _DTYPES[about["dtype"]], "r", start, tuple(about["shape"]))

    def read_embedding(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads the embedding some rows at a time."""
        return _read_rows(self._slice("embed_tokens.weight"))

    def read_head(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads the output head that `check` found, some rows at a time."""
        assert self._head is not None
        return _read_rows(self._slice_of(self._head))

    def _slice(self, name: str):
        return self._slice_of(f"{self._prefix}{name}")

    def _slice_of(self, full: str):
        return self._open(self.files[full]).get_slice(full)  # reopened: its pages can go


def _shards(folder: Path) -> list[str]:
    """The names of the files that are the model: as in transformers one whole file goes first."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole.name]
    listed = read_settings(index, "model").get("weight_map")
    names: list[Any] = list(listed.values()) if isinstance(listed, dict) else [listed]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(
                f"model: {index} is damaged: it names the file {shown(name)}, but a shard"
                " must be in the same folder"
            )
    return sorted({*names})


def _row_parts(shape: Sequence[int]) -> Iterator[slice]:
    """Cuts a matrix's rows into parts that are read at once."""
    rows, width = shape
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _read_rows(stored: Any) -> Iterator[tuple[slice, np.ndarray]]:
    for rows in _row_parts(stored.get_shape()):
        yield rows, stored[rows]


def weights(folder: Path, config: DecoderConfig) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yields the weights in parts: our name, where in it the part goes, and the numbers.

    A part is a block's matrix, bias or norm, or some rows of the embedding or the head, in the
    file's dtype; the norms' scales are float32, with Gemma's 1 added. The table that is only looked
    up is not among them, see `beside`.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen, or a file is damaged.
    """
    files = TensorFiles(folder)
    files.check(stored_shapes(config), config.tied, unused(config))
    for rows, part in files.read_embedding():
        yield "embedding", rows, part
    for rows, part in () if config.tied else files.read_head():
        yield "unembedding", rows, part
    for name, (stored, _) in other_tensors(config).items():
        yield name, ..., as_ours(name, files.read(stored), config)
    # Weight by weight, not layer by layer: each is complete, and on its device, before the next.
    for at, stack in config.stacks.items():
        for name, (stored, _) in block_tensors(config, stack).items():
            for index, layer in enumerate(stack.layers):
                part = files.read(f"layers.{layer}.{stored}")
                yield weight_name(at, name), index, as_ours(name, part, config)


def beside(folder: Path, config: DecoderConfig) -> RowTable | None:
    """What the layers of some families look up of each token, `[vocab_size, layers * size]`."""
    if not config.per_layer_dim:
        return None
    files = TensorFiles(folder)
    files.check(stored_shapes(config), config.tied, unused(config))
    return RowTable(files.mapped(TABLE))


def identity(folder: Path) -> str:
    """Two digests and a dash between them.

    The first is of the configuration and of every file's size and table of contents, the second of
    a thousand places in each file, in which fine-tunes of one base differ. (All of their values
    would take minutes; a model that was changed in very few of them is not told apart.)
    """
    contents, values = hashlib.sha256((folder / "config.json").read_bytes()), hashlib.sha256()
    for path in sorted(filter(Path.is_file, folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            stored = path.stat().st_size
            size = int.from_bytes(file.read(8), "little")
            contents.update(path.name.encode() + file.read(min(size, stored, 2**26)))
            contents.update(str(stored).encode())
            for begin in range(file.tell(), stored, max((stored - file.tell()) // 1000, _PLACE)):
                file.seek(begin)
                values.update(file.read(_PLACE))
    return f"{contents.hexdigest()}-{values.hexdigest()[:16]}"


def read_generation(folder: Path, described: Described) -> dict[str, Any]:
    """What the folder says of generation, for those who generate; only stop tokens matter here.

    Without `generation_config.json` it is what `config.json` says of tokens, as in transformers.

    Raises:
      UserError: the file is damaged, or a stop token is none of the model's.
    """
    path = folder / "generation_config.json"
    settings = read_settings(path, "model") if path.is_file() else dict(described.tokens)
    for token in stop_tokens(settings):
        if type(token) is not int or not 0 <= token < described.config.vocab_size:
            raise UserError(f"model: {folder}: there is no token {shown(token)} (eos_token_id)")
    return settings


def stop_tokens(generation: dict[str, Any]) -> list[Any]:
    """The tokens at which generation ends, by `generation_config.json`."""
    stops = generation.get("eos_token_id")
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def read_tokenizer(folder: Path, config: DecoderConfig) -> "transformers.PreTrainedTokenizerFast":
    """Reads the tokenizer; raises UserError if it is missing or has more tokens than the model.

    `tokenizer.json` is the tokenizer, `tokenizer_config.json` names the special tokens, and either
    it or `chat_template.jinja` holds the chat template. transformers' own loader would follow what
    the settings ask for: other classes, other files.
    """
    path, named = folder / "tokenizer.json", folder / "tokenizer_config.json"
    jinja = folder / "chat_template.jinja"
    if not path.is_file():
        raise UserError(f"model: {folder} holds no tokenizer.json")
    settings = read_settings(named, "model") if named.is_file() else {}
    try:
        backend = Tokenizer.from_file(str(path))
        backend.no_truncation()
        backend.no_padding()
        # Some versions of transformers follow this key, others what `tokenizer.json` does.
        prefixed = backend.encode("a", add_special_tokens=False).tokens[:1] != ["a"]
        check_keys(f"model: {named}", settings, (*_HARMLESS, *["add_prefix_space"] * prefixed))
        vocabulary = backend.get_vocab()
        _check_added(settings, backend)
        if {*vocabulary.values()} != {*range(len(vocabulary))}:  # all up to the last would be tried
            raise ValueError("its tokens are not numbered from 0 without gaps")
        roles = {
            role: _content(settings.get(role, usual if usual in vocabulary else None))
            for role, usual in _ROLES.items()
        }
        for role, token in roles.items():
            optional = token is None and not (config.needs_bos and role == "bos_token")
            if not optional and not (isinstance(token, str) and token in vocabulary):
                raise ValueError(f"there is no token {shown(token)} to be the {role}")
        if not config.needs_bos:
            _check_begins(backend, roles, settings.get("add_bos_token"))
        template = read_text(jinja) if jinja.is_file() else _template(settings)
        from transformers import PreTrainedTokenizerFast  # slow to import

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **roles,
        )
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"model: {path} cannot be read ({bare(error)})") from None
    added = tokenizer.added_tokens_decoder
    without = [i for i in vocabulary.values() if i >= config.vocab_size]
    # Gemma 3's text models come with the token of an image, which no text holds.
    if not all(i in added and added[i].special for i in without):
        raise UserError(
            f"model: the tokenizer in {folder} has {len(tokenizer)} tokens, the embedding only"
            f" {config.vocab_size}"
        )
    return tokenizer


def _check_begins(backend: Tokenizer, roles: dict[str, Any], asked: Any) -> None:
    """Raises ValueError unless what it puts before a text is the BOS, or nothing.

    `asked` is "add_bos_token" of the settings, which some versions of transformers follow.
    """
    around = [backend.id_to_token(i) for i in backend.encode("").ids]
    begins = around[:1] == [roles["bos_token"]]
    if around and not begins and around != [roles["eos_token"]]:
        raise ValueError(f"it puts {shown(around[0])} before a text, which is not its bos_token")
    if isinstance(asked, bool) and asked != begins:
        raise ValueError(f"its settings say add_bos_token {shown(asked)}, itself {shown(begins)}")


def _check_added(settings: dict[str, Any], backend: Tokenizer) -> None:
    """Raises ValueError if the settings add tokens, or treat them as `tokenizer.json` does not."""
    known = backend.get_added_tokens_decoder()
    flags = ["lstrip", "rstrip", "single_word"]
    flags += ["normalized"] * (backend.normalizer is not None)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        one = known.get(int(number))
        if one is None or one.content != _content(token):
            raise ValueError(f"it has no added token {shown(_content(token))} of number {number}")
        for flag in flags if isinstance(token, dict) else ():
            if token.get(flag, getattr(one, flag)) != getattr(one, flag):
                raise ValueError(
                    f"its token {shown(one.content)} has {flag} {getattr(one, flag)}, in its"
                    f" settings {shown(token[flag])}"
                )
    added = {number: one.content for number, one in known.items()}
    for key in ("additional", "extra", "model_specific"):
        listed = settings.get(f"{key}_special_tokens") or ()
        for token in listed.values() if isinstance(listed, dict) else listed:
            if _content(token) not in added.values():
                raise ValueError(f"it has no added token {shown(_content(token))}")


def _content(token: Any) -> Any:
    """A token that may be written with its properties."""
    return token.get("content") if isinstance(token, dict) else token


def _template(settings: dict[str, Any]) -> str | None:
    """The chat template, or the default one of several."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    if not isinstance(template, str | None):
        raise ValueError(f"the chat template is {shown(template)}")
    return template
