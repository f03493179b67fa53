"""Language kept: perplexity of base and tuned on texts, and how far apart they are, exactly.

Every token of a text is predicted from those before it, in windows. The divergence of the two
next-token distributions is over the whole vocabulary, at every token.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.devices.mesh import Layout, place
from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import chains
from jaxmoral.language.texts import Text, read_texts
from jaxmoral.learning.language_policy import Compared, LanguagePolicy, PromptInputs
from jaxmoral.learning.prompter import Prompter
from jaxmoral.measuring.choices import longest_prompt, speaking
from jaxmoral.measuring.source import Loaded, parameters

PyTree = Any
WINDOW = 256  # tokens that a text is cut into, BOS included
AT_ONCE = 4  # windows
WHOLE = "all"  # texts together


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
    texts, policies = read_texts(source), parameters(loaded)
    cut = [(text.kind, window) for text in texts for window in cut_text(prompter, text)]
    found = compare(loaded, [window for _, window in cut], policy=policy, policies=policies)
    groups: dict[str, list[int]] = {WHOLE: list(range(len(cut)))}
    for index, (kind, _) in enumerate(cut):
        groups.setdefault(kind, []).append(index)
    return {kind: _describe(found, chosen, list(policies)) for kind, chosen in groups.items()}


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


def compare(
    loaded: Loaded,
    windows: Sequence[Sequence[int]],
    *,
    policy: LanguagePolicy,
    policies: dict[str, PyTree],
) -> list[Compared]:
    """Every window's tokens compared, each `[length - 1]`; an untrained model with itself."""
    pair = [policies["base"], policies.get("tuned", policies["base"])]
    longest = max(map(len, windows))
    read, sharding = _reader(policy, loaded.agent.layout), loaded.agent.layout.sharding()
    found: list[Compared] = []
    for start in range(0, len(windows), AT_ONCE):
        batch = list(windows[start : start + AT_ONCE])
        rows = np.zeros((AT_ONCE, longest), np.int32)
        lengths = np.ones(AT_ONCE, np.int32)
        for index, window in enumerate(batch):
            rows[index, : len(window)], lengths[index] = window, len(window)
        shown = place((rows, lengths), sharding)
        made = jax.device_get(read(loaded.agent.frozen, *shown, *pair))
        for index, window in enumerate(batch):
            known = len(window) - 1
            found.append(Compared(*(leaf[index, :known] for leaf in made)))
    return found


@functools.cache
def _reader(policy: LanguagePolicy, layout: Layout) -> Any:
    def read(
        frozen: PyTree, tokens: jax.Array, lengths: jax.Array, base: PyTree, tuned: PyTree
    ) -> Compared:
        tree = chains(tokens, lengths)
        # The tree is all that is read of these.
        model = policy.bind(frozen, PromptInputs(tree, *[None] * 4))  # type: ignore[arg-type]
        pair = [_before(model.hidden(tree, own, None), tokens) for own in (base, tuned)]
        return model.compare(jnp.stack(pair, 2), tokens[:, 1:])

    return jax.jit(read, out_shardings=layout.sharding(), compiler_options=on_cpu(OFTEN))


def _before(hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """Hidden states before each token but the first, `[num_windows, longest - 1, embed_dim]`."""
    num_windows, longest = tokens.shape
    return hidden.reshape(num_windows, -1, hidden.shape[-1])[:, : longest - 1]


def _describe(
    found: Sequence[Compared], chosen: Sequence[int], policies: Sequence[str]
) -> dict[str, Any]:
    some = [found[index] for index in chosen]
    log_probs = np.concatenate([one.log_probs for one in some]).astype(np.float64)
    means = -log_probs.mean(0)
    made: dict[str, Any] = {
        "tokens": len(log_probs),
        "perplexity": {name: float(np.exp(means[i])) for i, name in enumerate(policies)},
    }
    if len(policies) > 1:
        made["kl"] = float(np.concatenate([one.kl for one in some]).astype(np.float64).mean())
        made["agreement"] = float(np.concatenate([one.same_top for one in some]).mean())
    return made
