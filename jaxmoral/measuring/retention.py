"""Language kept: perplexity of base and tuned on texts, and how far apart they are, exactly.

Every token of a text is predicted from those before it, in windows. The divergence of the two
next-token distributions is over the whole vocabulary, at every token. What is needed of the base's
is always the same, so it is kept in the cache folder.
"""

import functools
import hashlib
import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmoral.devices.cluster import largest
from jaxmoral.devices.compiler import jit_often
from jaxmoral.devices.mesh import Layout, everywhere, place
from jaxmoral.errors import UserError
from jaxmoral.files import replacing
from jaxmoral.language import prompt_tree
from jaxmoral.language.prompt_tree import PromptTree, merge
from jaxmoral.language.texts import WHOLE, Text, read_texts
from jaxmoral.language.thought_tree import paths
from jaxmoral.learning.damage import checksum
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.prompter import Prompter
from jaxmoral.measuring.choices import longest_prompt, speaking
from jaxmoral.measuring.source import Loaded
from jaxmoral.models.load import cache_folder
from jaxmoral.models.vocabulary import Known

PyTree = Any
WINDOW = 256  # tokens that a text is cut into, BOS included
AT_ONCE = 1024  # tokens
_MOST = 2**28  # bytes of a base's distributions that are kept
_FORMAT = 2  # of these; another number makes new ones


class Packed(NamedTuple):
    """Windows that are read together.

    Attributes:
      tree: of their tokens.
      beside: what layers look up of these, or None.
      nodes: `[num_rows]` int32, where tokens are predicted, window by window.
      tokens: `[num_rows]` int32, those that come.
    """

    tree: PromptTree
    beside: np.ndarray | None
    nodes: np.ndarray
    tokens: np.ndarray


class Predicted(NamedTuple):
    """How tokens are predicted, `[num_rows, ...]`.

    Attributes:
      log_probs: of the token, with a last axis of policies.
      kl: of the tuned distribution from the base's, in nats; None without one.
      same_top: whether both find the same token likeliest; likewise.
    """

    log_probs: np.ndarray
    kl: np.ndarray | None = None
    same_top: np.ndarray | None = None


def measure_retention(loaded: Loaded, source: str | Path) -> dict[str, Any]:
    """How well the base and the tuned agent predict texts, and how far apart they are.

    Args:
      loaded: who is measured.
      source: see `language.texts.read_texts`.

    Returns:
      By kind of text, "all" first: "tokens", how many were predicted; "perplexity", by policy; and
      of a tuned agent "kl", KL(base || tuned) in nats a token, and "agreement", the share of tokens
      before which both find the same one likeliest.

    Raises:
      UserError: a text cannot be used, or the agent is a table.
    """
    policy, prompter = speaking(loaded, "retention")
    texts = read_texts(source)
    cut = [(text.kind, window) for text in texts for window in cut_text(prompter, text)]
    found = predict(loaded, policy, [window for _, window in cut])
    groups: dict[str, list[int]] = {WHOLE: list(range(len(cut)))}
    for index, (kind, _) in enumerate(cut):
        groups.setdefault(kind, []).append(index)
    return {kind: _describe([found[index] for index in chosen]) for kind, chosen in groups.items()}


def cut_text(prompter: Prompter, text: Text) -> list[list[int]]:
    """A text's tokens in windows of about the same length; a BOS, if there is one, begins each.

    Raises:
      UserError: there is nothing to predict.
    """
    begin, ids = prompter.text_tokens(text.text.strip())
    room = min(WINDOW, longest_prompt(prompter)) - len(begin)
    if len(begin) + len(ids) < 2:
        raise UserError(f"retention: the text {text.text[:20]!r} has nothing to predict")
    parts = np.array_split(np.array(ids), -(-len(ids) // room))
    return [[*begin, *part.tolist()] for part in parts]


def predict(
    loaded: Loaded, policy: LanguagePolicy, windows: Sequence[Sequence[int]]
) -> list[Predicted]:
    """How every window's tokens are predicted, `[length - 1]`, by the base and who was trained."""
    agent, tuned = loaded.agent, loaded.trained
    assert isinstance(agent.prompter, Prompter)
    where = agent.layout.sharding()
    if tuned is not None:
        tuned = everywhere(tuned, agent.layout)
    groups = _groups([len(window) for window in windows])
    batches = [place(packed, where) for packed in pack(policy, agent.prompter, windows, groups)]
    keeping = _Kept(loaded, windows, batches)
    kept, fresh = keeping.read(), []
    if largest(int(kept is None)):  # what one process has to make all make together
        kept = None
    found: list[Predicted] = [Predicted(np.zeros(0))] * len(windows)
    for number, (indices, packed) in enumerate(zip(groups, batches, strict=True)):
        if kept is not None:
            known, chosen = kept[number]
        else:
            know = _knower(policy, agent.layout, tuned is not None)
            known, chosen = jax.device_get(know(agent.frozen, packed))
        made = Predicted(chosen[:, None])
        if tuned is not None:
            if kept is None and keeping.fits:
                fresh.append((known, chosen))
            compare, base = _comparer(policy, agent.layout), place(known, where)
            other, kl, top = jax.device_get(compare(agent.frozen, packed, tuned, base))
            made = Predicted(np.stack([chosen, other], 1), kl, top == known.top)
        ends = np.cumsum([len(windows[index]) - 1 for index in indices])
        for index, end in zip(indices, ends, strict=True):
            own = slice(end - len(windows[index]) + 1, end)
            kl, same = (None if leaf is None else leaf[own] for leaf in (made.kl, made.same_top))
            found[index] = Predicted(made.log_probs[own], kl, same)
    if fresh:
        keeping.write(fresh)
    return found


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of windows that are read together, about as many tokens each."""
    number = -(-sum(lengths) // AT_ONCE)
    groups: list[list[int]] = [[] for _ in range(number)]
    loads = [0] * number
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = loads.index(min(loads))
        groups[least].append(index)
        loads[least] += lengths[index]
    return [group for group in groups if group]


def pack(
    policy: LanguagePolicy,
    prompter: Prompter,
    windows: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
) -> list[Packed]:
    """The windows group by group, all groups padded to one shape."""
    longest = max(map(len, windows))
    merged = [merge([windows[index] for index in group]) for group in groups]
    room = max(len(tree.tokens) for tree, _ in merged)
    most = max(sum(len(windows[index]) - 1 for index in group) for group in groups)
    found = []
    for group, (tree, last) in zip(groups, merged, strict=True):
        walks = paths(tree, last, longest)
        own = [windows[index] for index in group]
        before = [walk[: len(ids) - 1] for walk, ids in zip(walks, own, strict=True)]
        nodes, tokens = np.concatenate(before), np.concatenate([ids[1:] for ids in own])
        spare = (0, most - len(nodes))
        tree = prompt_tree.pad(tree, room, longest - 1, prompter.multiple)
        beside = prompter.beside(tree.tokens)
        padded = [np.pad(leaf, spare, mode="edge").astype(np.int32) for leaf in (nodes, tokens)]
        found.append(Packed(tree, beside, *padded))
    return found


@functools.cache
def _knower(policy: LanguagePolicy, layout: Layout, compared: bool) -> Any:
    """From frozen arrays and packed windows to what the base says, and of the tokens that come."""

    def know(frozen: PyTree, packed: Packed) -> tuple[Known, jax.Array]:
        model = policy.reading(frozen)
        reference = policy.reference_parameters()
        hidden = model.before(reference, packed.tree, packed.nodes, packed.beside)
        decoder = model.model()
        known = decoder.know(hidden, policy.max_logits, compared=compared)
        return known, decoder.chosen_logits(hidden, packed.tokens) - known.log_sums

    return jit_often(know, layout)


@functools.cache
def _comparer(policy: LanguagePolicy, layout: Layout) -> Any:
    """From the same, parameters and what the base says to log-probabilities, KL, likeliest."""

    def compare(
        frozen: PyTree, packed: Packed, trainable: PyTree, base: Known
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = policy.reading(frozen)
        hidden = model.before(trainable, packed.tree, packed.nodes, packed.beside)
        decoder = model.model()
        known = decoder.know(hidden, policy.max_logits)
        kl = decoder.divergence(base, (hidden, known.log_sums), policy.max_logits)
        return decoder.chosen_logits(hidden, packed.tokens) - known.log_sums, kl, known.top

    return jit_often(compare, layout)


class _Kept:
    """What the base says to some windows, in a file of the cache folder.

    Attributes:
      fits: whether it is small enough to be kept.
    """

    def __init__(self, loaded: Loaded, windows: Sequence[Sequence[int]], batches: Sequence[Packed]):
        config, model = loaded.config.model, loaded.agent.model
        assert model is not None
        where = jax.default_backend(), loaded.agent.layout.mesh.size
        # A folder's digest is of shapes and sizes; fine-tunes of one base differ in numbers only.
        numbers = checksum((loaded.agent.frozen, [packed.beside for packed in batches]))
        about = [_FORMAT, model.sha256, int(numbers), config.dtype, config.quantisation]
        about += [where, AT_ONCE]
        digest = hashlib.sha256(json.dumps([about, *map(list, windows)]).encode()).hexdigest()
        self._path = cache_folder() / "retention" / f"{digest[:32]}.npz"
        self.fits = 8 * model.config.embed_dim * sum(map(len, windows)) <= _MOST

    def read(self) -> list[tuple[Known, np.ndarray]] | None:
        """Batch by batch; None if nothing is kept."""
        try:
            with np.load(self._path, allow_pickle=False) as found:
                arrays = dict(found)
            chosen = arrays.pop("chosen")
            slope = arrays.pop("slope", None)
            known = Known(**arrays, slope=slope)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None
        parts = [[None] * len(chosen) if leaf is None else leaf for leaf in known]
        return [(Known(*own), had) for *own, had in zip(*parts, chosen, strict=True)]

    def write(self, base: Sequence[tuple[Known, np.ndarray]]) -> None:
        """Keeps it for the next checkpoint; a folder that cannot be written to keeps nothing."""
        known, chosen = jax.tree.map(lambda *leaves: np.stack(leaves), *base)
        # Exact in these, and numpy's files know no bfloat16.
        arrays = known._replace(hidden=known.hidden.astype(np.float32))._asdict()
        present = {name: array for name, array in arrays.items() if array is not None}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as scratch, scratch.open("wb") as file:
                np.savez(file, chosen=chosen, **present)


def _describe(found: Sequence[Predicted]) -> dict[str, Any]:
    log_probs = np.concatenate([some.log_probs for some in found]).astype(np.float64)
    means = np.exp(-log_probs.mean(0))
    made: dict[str, Any] = {
        "tokens": len(log_probs),
        "perplexity": dict(zip(("base", "tuned"), map(float, means), strict=False)),
    }
    apart = [some.kl for some in found if some.kl is not None]
    if apart:
        made["kl"] = float(np.concatenate(apart).astype(np.float64).mean())
        same = [some.same_top for some in found if some.same_top is not None]
        made["agreement"] = float(np.concatenate(same).mean())
    return made
