"""Whatever a user types or a stranger's file holds gives a value, or one line that says why not.

Hypothesis makes up configurations, spoils small files of every kind that is read, and checks that
nothing but a UserError comes out, in little time and memory, and that no reader leaves its folder.
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
import shutil
import signal
import struct
import sys
import time
import tracemalloc
import typing
import unicodedata

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from conftest import save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.learning.resolve import resolve
from jaxmoral.models import hf_config, huggingface
from jaxmoral.models import load as gemma_load
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.gguf_file import GGUFModel
from jaxmoral.models.lora import Lora, init_adapter
from jaxmoral.models.peft import load_peft, save_peft
from jaxmoral.world import games, opponents

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers that overflow

LONGEST = 3_000  # characters of a message
SECONDS = 5.0  # of an example
SPARE = 4_000_000  # bytes that a reader may use however small the file is


def examples(number):
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class TooLong(BaseException):
    """Passes every `except Exception`."""


@contextlib.contextmanager
def in_time(seconds=SECONDS):
    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < seconds


def outcome(call, *arguments):
    """What the call returns, or None after a UserError of one short line; nothing else passes."""
    try:
        with in_time():
            return call(*arguments)
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert not {unicodedata.category(one) for one in message} & {"Cc", "Cs"}, message
        assert len(message) <= LONGEST, message
        return None


def frugal(size, call, *arguments):
    """`outcome` within four times the memory of a file of so many bytes.

    It is asked again if it took more: Python's table of interned names grows in leaps of megabytes.
    """
    for _ in range(2):
        tracemalloc.start()
        try:
            found = outcome(call, *arguments)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak < 4 * size + SPARE:
            return found
    raise AssertionError(peak)


# --- configurations ---

GROUPS = sorted({key.partition(".")[0] for key in configs.KEYS if "." in key})
PAIRS = {"CC": [3, 3], "CD": [0, 4], "DC": [4, 0], "DD": [1, 1]}
COIN = {"cooperate": [0.5], "transitions": [[0, 0, 0, 0]]}
ODD = [
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.5, 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "\n", "a\nb", "\ud800", "\x00", "\x1b[2J", "\u2028"),
    *("\N{PILE OF POO}" * 3, "x" * 100_000, "x " * 50_000, "nan", "inf", "1e400", "1_0", "0x10"),
    *("(((", "a(b", "game(", "game)", "game+", "*game", "nan*game", "1e999*game", "a\n*game"),
    *("donation(1e308,-1e308)", "affine(ipd,1e6,1e308)", "ordinal(nan)", "ordinal(1e400)"),
    *("public-goods(4,1e6,1e308)", "group(group(ipd,3),3)", "noisy(noisy(random,1),nan)"),
    *("norm(" + "1," * 7 + "inf)", "random(inf)", "memory-one(1,1,1,1,2)", "extortionate(1,0)"),
    *("../x.txt", "/none/x.txt", "/none/\x00.txt", "\nx.txt", "{", "{c} {d}", "{c.__class__} {d}"),
    *("{c[0]} {d} x", "{} x", "{0} {c} {d}", "{c!r} {d} {}", "owner/name", "a@b@c", "."),
    *([], [None], [[]], [[[]]], [1, 2], [2, 1], ["a", "b"], ["a", "a"], ["a\n", "b"], [1.5, 2]),
    *([1e308, -1e308], [10**400, 1], ["q"], ["q", "q"], ["all"], ["all", "all"], [[1, 2], [2, 3]]),
    *({}, {"a": 1}, {"a": {"b": {"c": []}}}, {1: 2}, {None: 1}, {(1, 2): 3}, {math.nan: 1}),
    *({"a\nb": 1}, {"\ud800": 1}, {"x" * 1000: {}}, {10**400: 1}, {"": {}}, {"x": PAIRS}),
    *({"x": PAIRS | {"CC": [1e300, -1e300]}}, {"x": PAIRS | {"CC": [10**400, 1]}}),
    *({"x": PAIRS | {"CC": [1, math.nan]}}, {"x": {"C": [1, 2], "D": [3, 4]}}, {"a\nb": PAIRS}),
    *({"x": {"C": [1] * 11, "D": [1] * 11}}, {"x": {"C": [[1]], "D": [1]}}, {"ipd": PAIRS}),
    *({"x": COIN}, {"tit-for-tat": COIN}, {"x": COIN | {"start": -1}}, {"x": COIN | {"start": []}}),
    *({"x": COIN | {"cooperate": value}} for value in ([10**400], "ab", {0: 1}, None, [True])),
    *({"x": COIN | {"transitions": value}} for value in ([[math.inf] * 4], "ab", ["0000"], [[0]])),
    b"\xff",
    {1, 2},
    (1, 2),
    object,
]
scalars = st.one_of(
    st.sampled_from(ODD),
    st.none() | st.booleans() | st.integers() | st.floats(),
    st.text(st.characters(), max_size=30),
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
values = scalars | scalars | junk

# Names that mostly are some, so that more than the first look-up is reached.
GAME_NAMES = ["ipd", "bos", "donation(3,1)", "affine(ipd,2)", "public-goods(3)", "group(ish,3)"]
OPPONENT_NAMES = [
    "random",
    "joss",
    "noisy(tit-for-tat,0.1)",
    "extortionate(2)",
    "learner",
    "conditional",
]
REWARD_NAMES = [
    "game",
    "deontological",
    "game+0.5*altruism(0.3)",
    "norm(0,1,2,3,4,5,6,7)",
    "-1*maximin",
]
NAMES = {
    "env.game": GAME_NAMES,
    "env.opponent": OPPONENT_NAMES,
    "reward.name": REWARD_NAMES,
    "reward.then": REWARD_NAMES,
    "prompt.wording": ["structured", "story", "{choices} {when}", "{c} or {d}?\n{own_points}"],
    "prompt.persona": ["none", "utilitarian", "Be good."],
    "evaluation.suites": ["all", "trained", "personas"],
    "evaluation.games": [*GAME_NAMES, "all", "plane"],
    "evaluation.opponents": OPPONENT_NAMES,
    "lora.adapter": ["folder"],
}


def of_type(hint, names):
    """Values that a key of this type takes, or nearly."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is ...:
        return st.lists(of_type(inner[0], names), min_size=1, max_size=3)
    if origin is tuple:
        return st.tuples(*(of_type(one, names) for one in inner)).map(list)
    if origin is dict:
        return st.sampled_from([{}, {"x": PAIRS}, {"x": COIN}, {"x": {"C": [0, 2], "D": [1, 3]}}])
    if inner:  # or None
        return st.one_of(*(of_type(one, names) for one in inner))
    usual = {
        bool: st.booleans(),
        int: st.integers(0, 9) | st.sampled_from([64, 256, 4096]),
        float: st.floats(0, 1) | st.sampled_from([3.0, -6.0, 1e300, math.inf]),
        str: st.sampled_from(names) if names else st.text(max_size=5),
        type(None): st.none(),
    }
    return usual[hint]


def usual_values(cls=configs.Config, prefix=""):
    """A strategy for every key."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        key = prefix + name
        if dataclasses.is_dataclass(hint):
            found |= usual_values(hint, f"{key}.")
        else:
            found[key] = of_type(hint, NAMES.get(key))
    return found


USUAL = usual_values()
some_keys = st.lists(st.sampled_from(configs.KEYS), max_size=5, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: USUAL[key] for key in keys})
)


def together(changes):
    """`{"a": {"b": value}}` of `{"a.b": value}`; small where nothing else is asked for."""
    tree = {"model": {"source": "tabular"}, "env": {"episodes": 8}}
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = copy.deepcopy(value)
    return tree


def resolved(config):
    """`resolve`, and a configuration that can be written and read; the registries stay as they are.

    The paths among the odd values lead to nothing.
    """
    before = list(games.GAMES), list(opponents.OPPONENTS)
    found = outcome(resolve, config)
    if found is not None:
        assert configs.parse(configs.to_dict(found)) == found
    assert (list(games.GAMES), list(opponents.OPPONENTS)) == before
    return found


@pytest.mark.parametrize("key", [*configs.KEYS, *GROUPS, "zzz", "env.zzz", "ppo.a\nb", "\ud800.x"])
def test_odd_values_of_every_key(key):
    for value in ODD:
        config = outcome(configs.parse, together({key: value}))
        if config is not None:
            resolved(config)


@pytest.mark.parametrize("key", [*configs.KEYS, *GROUPS])
@given(value=values, others=some_keys)
@examples(12)
def test_any_value_of_any_key(key, value, others):
    config = outcome(configs.parse, together(others | {key: value}))
    if config is not None:
        resolved(config)


@given(changes=some_keys)
@examples(400)
def test_usual_values_together(changes):
    config = outcome(configs.parse, together(changes))
    if config is not None:
        resolved(config)


@pytest.mark.parametrize("key", [*configs.KEYS, *GROUPS])
def test_numbers_that_python_does_not_write(key):
    """Of more than 4300 digits; not even Hypothesis can show them."""
    number = 10**5000
    for value in (number, -number, [number, number], {number: 1}, {"x": number}):
        assert outcome(configs.parse, together({key: value})) is None


parts = st.sampled_from([part for key in configs.KEYS for part in key.split(".")])
trees = st.recursive(
    scalars, lambda inner: st.dictionaries(parts | st.text(max_size=5), inner, max_size=4)
)


@given(tree=trees)
@examples(300)
def test_any_tree(tree):
    config = outcome(configs.parse, copy.deepcopy(tree))
    if config is not None:
        resolved(config)


def as_text(value):
    """YAML where the value can be written at all."""
    try:
        return yaml.safe_dump(value)
    except (yaml.YAMLError, ValueError):
        return str(type(value))


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml") / "config.yaml"


@given(
    in_file=some_keys,
    in_flags=some_keys,
    odd=st.lists(st.tuples(st.sampled_from(configs.KEYS) | st.text(), values), max_size=1),
    texts=st.lists(st.text(max_size=10), max_size=1),
)
@examples(250)
def test_files_and_flags(yaml_file, in_file, in_flags, odd, texts):
    yaml_file.write_text(as_text(together(in_file)))
    given_flags = [*in_flags.items(), *odd]
    flags = [part for key, value in given_flags for part in (f"--{key}", as_text(value))]
    members = outcome(configs.load_members, yaml_file, [*flags, *texts])
    for config in list((members or {}).values())[:3]:
        resolved(config)


axes_of = st.lists(st.sampled_from(configs.KEYS), min_size=1, max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.lists(USUAL[key], max_size=4) for key in keys})
)


@given(
    axes=axes_of, odd=st.dictionaries(st.sampled_from(configs.KEYS), st.lists(scalars), max_size=1)
)
@examples(150)
def test_populations_of_anything(axes, odd):
    flags = [part for key, value in (axes | odd).items() for part in (f"--{key}", as_text(value))]
    members = outcome(configs.load_members, None, flags)
    for name, config in (members or {}).items():
        assert "/" not in name
        assert isinstance(config, configs.Config)


PIECES = [
    *"[]{},:?-&*!|>'\"%@`#\n \t=<~",
    *("\n  ", ": ", "- ", "? ", "<<: ", "&a ", "*a", "&b ", "*b", "!!", "!", "---\n", "...\n", "#"),
    *("!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!python/tuple [1]"),
    *("!!bool x", "!!int ''", "!!int x", "!!float ''", "!!float x", "!!timestamp x", "!!binary é"),
    *("!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "!!merge x", "!!value x"),
    *("2020-99-99", "2020-01-01", "2020-01-01T00:00:00+99:99", "1:1:1", "0b_", "0x_", "0xff"),
    *("1" * 5000, ".inf", ".nan", "1e999", "null", "true", "%YAML 9.9\n", "%TAG ! x\n", "\ufeff"),
    *("seed", "env", "model: {source: tabular}", "games: ", "x: ", "\x85", "\u2028", "\x00"),
]


@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30))
@examples(400)
def test_any_yaml(yaml_file, pieces):
    yaml_file.write_bytes("".join(pieces).encode("utf-8", "surrogatepass"))
    outcome(configs.load_members, yaml_file)


@given(content=st.binary(max_size=60))
@examples(60)
def test_any_bytes_as_a_configuration(yaml_file, content):
    yaml_file.write_bytes(content)
    outcome(configs.load_members, yaml_file)


def multiplied(start, middle):
    """Nine of what has nine of what has nine of ..."""
    lines = [f"a0: &a0 {start}"]
    for level in range(1, 12):
        inside = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {middle % inside}")
    return "\n".join(lines)


BOMBS = {
    "aliases": multiplied("[x, x]", "[%s]"),
    "aliases of a game": "games: {x: {CC: &c [1, 1]}}\n" + multiplied("{C: *c}", "{a: [%s]}"),
    "merge keys": multiplied("{x: 1}", "{<<: [%s]}"),
    "a list in itself": "a: &a [*a]",
    "keys in themselves": "env: &a {<<: *a}",
    "lists": "a: " + "[" * 50_000,
    "groups": "{a: " * 20_000,
    "dashes": "- " * 40_000,
    "question marks": "? " * 40_000,
    "a long number": "seed: " + "9" * 90_000,
    "a long hexadecimal number": "seed: 0x" + "f" * 90_000,
    "a long time": "seed: 1" + ":1" * 30_000,
    "a long text": "env: {game: " + "x" * 90_000 + "}",
    "a long key": "? " + "x" * 90_000 + "\n: 1",
    "a long anchor": "&" + "x" * 90_000 + " seed: 1",
    "an unknown long alias": "seed: *" + "x" * 90_000,
    "a long tag": "seed: !" + "x" * 90_000 + " 1",
    "a long file": "seed: 1 #" + "x" * 10_000_000,
    "the paper's preset for many members": f"preset: paper\nseed: {list(range(4096))}",
    "too many members": f"seed: {list(range(100))}\nupdates: {list(range(1, 100))}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_not_go_off(yaml_file, name):
    yaml_file.write_text(BOMBS[name])
    tracemalloc.start()
    members = outcome(configs.load_members, yaml_file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert members is None or name == "the paper's preset for many members"


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir [%s]", "object/new:os.mkdir [%s]", "name:os.mkdir", "module:os"]
)
@pytest.mark.parametrize("how", ["file", "flag"])
def test_yaml_runs_no_code(yaml_file, tmp_path, tag, how):
    target = tmp_path / "made"
    text = "!!python/" + tag.replace("%s", str(target))
    yaml_file.write_text(f"prompt: {{wording: {text}}}" if how == "file" else "seed: 1")
    flags = ["--prompt.wording", text] if how == "flag" else []
    outcome(configs.load_members, yaml_file, flags)
    assert not target.exists()


def test_values_under_one_anchor_are_several(yaml_file):
    """A flag or a member changes one of them, not all."""
    yaml_file.write_text("reward: &a {xi: [1, 2]}\nevaluation: *a\n")
    members = configs.load_members(yaml_file)
    assert {(one.reward.xi, one.evaluation.xi) for one in members.values()} == {
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    }
    yaml_file.write_text(
        "games: {one: &a {CC: [1, 1], CD: [1, 1], DC: [1, 1], DD: [1, 1]}, two: *a}"
    )
    config = configs.load(yaml_file, ["--games.one.CC", "[2, 2]"])
    assert config.games["one"]["CC"] == (2, 2)
    assert config.games["two"]["CC"] == (1, 1)


# --- files ---

HUGE = [0, 1, 2, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**62, 2**63, 2**64 - 1]


@st.composite
def spoiled(draw, content, marks=()):
    """The bytes with something wrong: most often near a mark, where lengths stand."""
    data = bytearray(content)
    anywhere = st.integers(0, len(data) - 1)
    place = anywhere | st.sampled_from(marks or [0])
    kind = draw(st.sampled_from(["flip", "flip", "length", "length", "cut", "drop", "double"]))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 4))):
            data[draw(place)] = draw(st.integers(0, 255))
    elif kind == "length":
        start, width = draw(place), draw(st.sampled_from("BHIQ"))
        raw = struct.pack(f"<{width}", draw(st.sampled_from(HUGE)) % 256 ** struct.calcsize(width))
        data[start : start + len(raw)] = raw
    elif kind == "cut":
        del data[draw(place) :]
    else:
        start, size = draw(place), draw(st.integers(1, 64))
        data[start : start + size] = data[start : start + size] * (2 if kind == "double" else 0)
    return bytes(data)


@st.composite
def spoiled_json(draw, content):
    """The same keys and values, some of them replaced or removed, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.sampled_from([b"", b"[]", b"null", b"1", b'"x"', b"{", b"[" * 100_000, b"\xff"])
        )
    tree = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            if draw(st.integers(0, 4)) == 0 and isinstance(node, dict):
                del node[key]
            else:
                node[key] = copy.deepcopy(draw(odd_json))
            break
    return json.dumps(tree).encode()


def _writable(value):
    try:
        return json.loads(json.dumps(value)) is not None
    except (TypeError, ValueError):
        return False


odd_json = st.sampled_from([value for value in ODD if _writable(value)]) | st.integers()
odd_json |= st.sampled_from([None, "", 0, -1, 1, 7, 2**31, 10**9, 1e9, math.nan, True, [], {}])

PLAIN = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "c", "ab", "abc", "▁a", "▁ab"]
PIECES_OF_TEXT = [*PLAIN, "<0x0A>", "<0x20>", "<start_of_turn>", "<end_of_turn>"]
KINDS = [3, 3, 3, 2, *[1] * 8, 6, 6, 4, 4]


def write_gguf(path, family="gemma3"):
    """A model of one layer, 8 wide, with 16 pieces of text, in about 5 kB."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if family == "gemma3":
        writer.add_sliding_window(4)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(i) for i in range(16)])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_merges(["a b", "ab c"])
    writer.add_token_list(PIECES_OF_TEXT)
    writer.add_token_types(KINDS)
    for name, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(number)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (16, 8), "output_norm": (8,)}
    block = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8)}
    block |= {"ffn_gate": (8, 8), "ffn_up": (8, 8), "ffn_down": (8, 8), "attn_norm": (8,)}
    block |= {"ffn_norm": (8,)}
    if family == "gemma3":
        block |= {"post_attention_norm": (8,), "post_ffw_norm": (8,)}
        block |= {"attn_q_norm": (4,), "attn_k_norm": (4,)}
    else:
        shapes |= {"output": (16, 8), "rope_freqs": (2,)}
    for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in block.items()}).items():
        numbers = np.ones(shape) if name == "rope_freqs" else random.normal(size=shape)
        writer.add_tensor(f"{name}.weight", numbers.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path):
    model = GGUFModel(path)
    config = model.config()
    found = {name: weight.shape for name, weight in model.weights()}
    tokenizer = tokenizers.build(model.vocabulary())
    tokenizers.byte_pieces(tokenizer)
    return config, found, tokenizer.encode("ab a\n")


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def tiny_gguf(tmp_path_factory, request):
    """A path to spoil, what it holds while it is whole, and where its lengths stand."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, request.param)
    content = path.read_bytes()
    reader = gguf.GGUFReader(path)
    marks = [4, 8, 16]
    fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
    for field in fields:
        at = field.offset
        for part in field.parts:
            marks += [at, at + 4] if part.nbytes >= 8 else [at]
            at += part.nbytes
    del reader
    config, shapes, tokens = read_gguf(path)
    assert config.num_layers == 1
    assert shapes["blocks.q"] == (1, 8, 8)
    assert tokens[0] == 2
    return path, content, sorted(set(marks))


@given(data=st.data())
@examples(500)
def test_a_spoiled_gguf(tiny_gguf, data):
    path, content, marks = tiny_gguf
    path.write_bytes(data.draw(spoiled(content, marks)))
    frugal(len(content), read_gguf, path)


def test_a_gguf_cut_anywhere(tiny_gguf):
    path, content, marks = tiny_gguf
    for length in {*marks, *range(0, len(content), 97)}:
        path.write_bytes(content[:length])
        assert frugal(len(content), read_gguf, path) is None


def test_only_a_whole_gguf_is_kept(tiny_gguf, tmp_path, monkeypatch):
    """Through `load`, which converts it into the cache."""
    path, content, _ = tiny_gguf
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "cache"))
    layers = content.index(b".block_count") + len(".block_count") + 4
    many = content[:layers] + struct.pack("<I", 900) + content[layers + 4 :]
    for spoiled_one in (content[:-100], many, content.replace(b"ffn_up", b"ffn_xx")):
        path.write_bytes(spoiled_one)
        assert outcome(gemma_load.load, str(path)) is None
        assert not list((tmp_path / "cache").glob("*"))
    path.write_bytes(content)
    assert gemma_load.load(str(path)).config.num_layers == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def entry(key, kind, value):
    """One of a GGUF's keys and values."""
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "value",
    [
        entry("x", 9, struct.pack("<IQ", 0, 2**60)),  # an array of so many bytes
        entry("x", 9, struct.pack("<IQ", 8, 2**60)),  # of texts
        entry("x", 9, struct.pack("<IQ", 9, 2**60) + struct.pack("<IQ", 9, 1) * 2000),  # of arrays
        entry("x", 8, struct.pack("<Q", 2**64 - 1)),  # a text that is so long
        entry("x", 77, b""),
    ],
    ids=["numbers", "texts", "arrays", "text", "unknown"],
)
def test_a_gguf_of_impossible_lengths(tmp_path, value):
    path = tmp_path / "model.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    family = entry("general.architecture", 8, struct.pack("<Q", 6) + b"gemma3")
    path.write_bytes(head + family + value)
    assert frugal(0, read_gguf, path) is None


@given(
    pieces=st.lists(st.sampled_from(PIECES_OF_TEXT) | st.text(max_size=6), min_size=1, max_size=30),
    data=st.data(),
)
@examples(150)
def test_any_vocabulary(pieces, data):
    size = len(pieces)
    number = st.integers(0, size - 1)
    kinds = data.draw(st.lists(st.integers(0, 7), min_size=size, max_size=size))
    scores = data.draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    vocabulary = tokenizers.Vocabulary(
        pieces,
        np.array(scores, np.float32),
        np.array(kinds, np.int32),
        *(data.draw(number) for _ in range(4)),
    )
    tokenizer = outcome(tokenizers.build, vocabulary)
    if tokenizer is not None:
        assert len(tokenizers.byte_pieces(tokenizer)) == size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder in Hugging Face layout to spoil, with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny("gemma3", folder)
    size = len(PIECES_OF_TEXT)
    scores = -np.arange(size, dtype=np.float32)
    kinds = np.array(KINDS, np.int32)
    tokenizer = tokenizers.build(tokenizers.Vocabulary(PIECES_OF_TEXT, scores, kinds, 2, 1, 3, 0))
    tokenizers.save(tokenizer, folder)
    assert read_folder(folder).num_layers == 4
    return folder


def read_folder(folder):
    config = hf_config.read_config(folder)
    huggingface.identity(folder)
    tokenizers.byte_pieces(huggingface.read_tokenizer(folder, config))
    for _ in huggingface.weights(folder, config):
        pass
    return config


@contextlib.contextmanager
def replaced(path, content):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


JSON_FILES = ["config.json", "model.safetensors.index.json", "tokenizer.json"]
JSON_FILES += ["tokenizer_config.json"]


@pytest.mark.parametrize("name", JSON_FILES)
@given(data=st.data())
@examples(150)
def test_a_checkpoint_with_a_spoiled_json(checkpoint, name, data):
    path = checkpoint / name
    content = path.read_bytes()
    kind = data.draw(st.sampled_from([spoiled_json, spoiled_json, spoiled]))
    with replaced(path, data.draw(kind(content))):
        frugal(size_of(checkpoint), read_folder, checkpoint)


def with_head(content, head):
    """A safetensors file with another table of contents."""
    (size,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", len(head)) + head + content[8 + size :]


def head_of(content):
    (size,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + size]


@given(data=st.data())
@examples(150)
def test_a_checkpoint_with_a_spoiled_shard(checkpoint, data):
    path = data.draw(st.sampled_from(sorted(checkpoint.glob("*.safetensors"))))
    content = path.read_bytes()
    marks = range(8 + len(head_of(content)))
    if data.draw(st.booleans()):
        content = with_head(content, data.draw(spoiled_json(head_of(content))))
    else:
        content = data.draw(spoiled(content, marks))
    with replaced(path, content):
        frugal(size_of(checkpoint), read_folder, checkpoint)


@pytest.mark.parametrize("field", ["gemma3.block_count", "general.architecture"])
def test_a_gguf_with_a_list_for_a_number(tmp_path, field):
    """numpy would show it in several lines."""
    path = tmp_path / "model.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    family = entry("general.architecture", 8, struct.pack("<Q", 6) + b"gemma3")
    other = family if field == "gemma3.block_count" else b""
    path.write_bytes(head + other + entry(field, 9, struct.pack("<IQ", 4, 500) + bytes(2000)))
    assert frugal(2000, read_gguf, path) is None


def test_tensors_of_a_gguf_that_share_their_bytes(tmp_path):
    """Or a small file could hold a model that fills the memory."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        at = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts)
        content[at - 8 : at] = bytes(8)
    del reader
    path.write_bytes(content)
    with pytest.raises(UserError, match="are cut off or not its own"):
        read_gguf(path)


def test_a_whole_folder_loads_or_says_why_not(checkpoint):
    """Through `load`, which also puts the weights together."""
    gemma_load.load(str(checkpoint))
    for name, key, value in [
        ("config.json", "num_hidden_layers", 900),
        ("config.json", "vocab_size", 2**30),
        ("config.json", "hidden_size", 2**30),
        ("config.json", "head_dim", 0),
        ("config.json", "rope_parameters", {"full_attention": {"rope_type": "yarn"}}),
        ("config.json", "num_labels", 10**9),  # transformers would name each
        ("tokenizer_config.json", "bos_token", "\n"),
        ("tokenizer_config.json", "chat_template", 5),
        ("tokenizer.json", "model", {"type": "BPE", "vocab": {"<bos>": 2**31}, "merges": []}),
    ]:
        path = checkpoint / name
        content = json.dumps(json.loads(path.read_bytes()) | {key: value}).encode()
        with replaced(path, content):
            loaded = frugal(size_of(checkpoint), gemma_load.load, str(checkpoint))
        assert (loaded is not None) == (key == "num_labels"), (name, key)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, checkpoint):
    """The folder of an adapter to spoil, and the model's configuration."""
    folder = tmp_path_factory.mktemp("adapter")
    config = hf_config.read_config(checkpoint)
    lora = Lora(2, 4.0, 0.0, ("q", "down"))
    adapter = init_adapter(jax.random.key(0), config, lora)
    save_peft(folder, config, adapter, lora, "owner/name@main")
    assert read_adapter(folder, config)[1] == lora
    return folder, config


def read_adapter(folder, config):
    found, lora = load_peft(folder, config, 0.0)
    assert lora.rank > 0
    assert lora.alpha > 0
    for target, pair in found.items():
        inputs, outputs = config.stacks[""].linear_shapes[target]
        assert pair["a"].shape == (config.num_layers, lora.rank, inputs)
        assert pair["b"].shape == (config.num_layers, lora.rank, outputs)
    return found, lora


@given(data=st.data())
@examples(250)
def test_a_spoiled_adapter_config(adapter, data):
    folder, config = adapter
    path = folder / "adapter_config.json"
    content = path.read_bytes()
    settings_of_others = json.loads(content) | {
        "use_dora": False,
        "rank_pattern": {},
        "layers_to_transform": None,
        "auto_map": {},
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "lora_bias": False,
    }
    content = json.dumps(settings_of_others).encode()
    kind = data.draw(st.sampled_from([spoiled_json, spoiled_json, spoiled]))
    with replaced(path, data.draw(kind(content))):
        frugal(size_of(folder), read_adapter, folder, config)


@given(data=st.data())
@examples(250)
def test_a_spoiled_adapter(adapter, data):
    folder, config = adapter
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    if data.draw(st.booleans()):
        content = with_head(content, data.draw(spoiled_json(head_of(content))))
    else:
        content = data.draw(spoiled(content, range(8 + len(head_of(content)))))
    with replaced(path, content):
        frugal(size_of(folder), read_adapter, folder, config)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAME.replace("0", "9" * 5000), np.zeros((2, 32), np.float32), "is not a LoRA weight"),
        (NAME.replace("base", "ba\nse"), np.zeros((2, 32), np.float32), "is not a LoRA weight"),
        (NAME.replace("base_model.", ""), np.zeros((2, 32), np.float32), "are the same weight"),
        (NAME, np.zeros((2, 0), np.float32), r"has shape \(2, 0\), expected \(2, 32\)"),
        (NAME, np.zeros((2, 32), np.int64), "holds I64, expected"),
        (NAME, np.zeros((2, 32), bool), "holds BOOL, expected"),
    ],
)
def test_odd_tensors_in_an_adapter(adapter, name, array, message):
    folder, config = adapter
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    with replaced(path, content):
        safetensors.numpy.save_file(safetensors.numpy.load_file(path) | {name: array}, path)
        with pytest.raises(UserError, match=message) as caught:
            read_adapter(folder, config)
    assert len(str(caught.value).splitlines()) == 1


# --- containment ---


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the checkpoint, and beside it a file that nothing in it may reach."""
    shutil.copytree(checkpoint, tmp_path / "model")
    secret = tmp_path / "secret.safetensors"
    shutil.copy(checkpoint / sorted(checkpoint.glob("*.safetensors"))[0].name, secret)
    return tmp_path / "model"


@contextlib.contextmanager
def watched(*inside):
    """Yields a list of what Python opens outside these folders, and of calls to the network."""
    found, active = [], True
    allowed = tuple(map(os.fspath, inside))

    def audit(event, arguments):
        if active and event.startswith("socket."):
            found.append(event)
        elif active and event in ("open", "os.listdir") and isinstance(arguments[0], str):
            path = os.path.abspath(arguments[0])
            if not path.startswith(allowed):
                found.append(path)

    sys.addaudithook(audit)  # there is no way to remove it
    try:
        yield found
    finally:
        active = False


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "./../secret.safetensors", "sub/../../secret.safetensors"),
        *("", ".", "..", "/", "sub", "sub/x.safetensors", "./x.safetensors", "x\x00.safetensors"),
        *("pytorch_model.bin", "config.json", "x.safetensors\n", None, 5, ["x"], {"x": "y"}),
        "absolute",
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, name):
    if name == "absolute":
        name = str(folder.parent / "secret.safetensors")
    (folder / "sub").mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = name
    index.write_text(json.dumps(content))
    assert outcome(read_folder, folder) is None
    with pytest.raises(UserError, match="must be in the same folder|no safetensors file"):
        read_folder(folder)


def test_links_of_a_folder_are_followed(folder, tmp_path):
    """The hub's cache is made of them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert read_folder(linked) == read_folder(folder)


def test_pipes_and_devices_are_no_files(folder):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            path.unlink(missing_ok=True)
            make(path)
            outcome(read_folder, folder)
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    os.mkfifo(folder / "other.safetensors")
    assert outcome(read_folder, folder) is not None


EVIL = "raise SystemExit('run')\n"
MAP = {
    **{name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")},
    "AutoTokenizer": ["evil.Slow", "evil.Fast"],
}


def test_no_code_of_a_folder_is_run(folder, monkeypatch):
    """Nor does a setting lead to other files or classes."""
    monkeypatch.syspath_prepend(folder)
    expected = read_folder(folder)
    for name in ("evil.py", "tokenization_evil.py", "custom_generate.py", "__init__.py"):
        (folder / name).write_text(EVIL)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")
    (folder / "tokenizer.model").write_bytes(b"cos\nabort\n(tR.")
    other = "../secret.safetensors"
    rewrite(folder / "config.json", _name_or_path=other, architectures=["evil.Model"])
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        tokenizer_file=other,
        name_or_path=other,
        special_tokens_map_file=other,
    )
    with watched(folder, sys.prefix, sys.base_prefix) as outside:
        assert read_folder(folder) == expected
    for name, key, value in [
        ("config.json", "auto_map", MAP),
        ("config.json", "trust_remote_code", True),
        ("config.json", "configuration_files", [other]),
        ("config.json", "quantization_config", {"quant_method": "evil"}),
        ("config.json", "custom_pipelines", {"x": {"impl": "evil.X"}}),
        ("tokenizer_config.json", "auto_map", MAP),
        ("tokenizer_config.json", "trust_remote_code", True),
        ("tokenizer_config.json", "vocab_file", other),
        ("tokenizer_config.json", "merges_file", other),
        ("tokenizer_config.json", "fast_tokenizer_files", ["../tokenizer.5.0.0.json"]),
        ("tokenizer_config.json", "added_tokens_file", other),
    ]:
        rewrite(folder / name, **{key: value})
        watching = watched(folder, sys.prefix, sys.base_prefix)
        with watching as also, pytest.raises(UserError, match=key):
            read_folder(folder)
        rewrite(folder / name, **{key: None})
        outside += also
    assert not outside
    assert "evil" not in sys.modules


def test_settings_of_an_adapter_lead_nowhere(adapter, tmp_path):
    folder, config = adapter
    shutil.copytree(folder, tmp_path / "adapter")
    folder = tmp_path / "adapter"
    (tmp_path / "secret.json").write_text("{}")
    (folder / "evil.py").write_text(EVIL)
    other = str(tmp_path / "secret.json")
    expected = read_adapter(folder, config)[1]
    rewrite(
        folder / "adapter_config.json",
        base_model_name_or_path=other,
        auto_mapping=MAP,
        eva_config=other,
        megatron_config=other,
    )
    with watched(folder) as opened:
        assert read_adapter(folder, config)[1] == expected
    for refused in (
        {"revision": "../.."},
        {"parent_library": "evil"},
        {"adapter_file": other},
        {"corda_config": {"cache": other}},
        {"loftq_config": {"x": other}},
    ):
        rewrite(folder / "adapter_config.json", **refused)
        with watched(folder) as also, pytest.raises(UserError, match=next(iter(refused))):
            load_peft(folder, config, 0.0)
        rewrite(folder / "adapter_config.json", **dict.fromkeys(refused))
        opened += also
    assert not opened


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickled_adapter_is_not_opened(adapter, tmp_path, name):
    folder, config = adapter
    shutil.copy(folder / "adapter_config.json", tmp_path)
    (tmp_path / name).write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(
        UserError, match=r"cannot read .*adapter_model\.safetensors .*no other kind"
    ):
        read_adapter(tmp_path, config)


def test_a_pickle_with_another_name_is_not_opened(folder, adapter, tmp_path):
    """Also not as safetensors, nor as a GGUF file."""
    pickle = b"cos\nabort\n(tR."
    for path in folder.glob("*.safetensors"):
        path.write_bytes(pickle)
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        read_folder(folder)
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle)
    with pytest.raises(UserError, match="not a complete GGUF file"):
        GGUFModel(path)
