"""Byte-level tokenizers of files and folders against transformers, and the prompts made of them."""

import copy
import dataclasses
import functools
import itertools
import json
import unicodedata

import gguf
import pytest
import tiny_model
import transformers
from golden_real_model import spellings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.language.responses import WHITESPACE
from jaxmoral.learning.prompter import Prompter
from jaxmoral.models import load as loading
from jaxmoral.models import tokenizer as tokenizers
from jaxmoral.models.byte_level import CUTTINGS
from jaxmoral.models.gguf_file import GGUFModel
from jaxmoral.world.games import get_game

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OWN = ["<think>", "</think>"]  # tokens that are no special ones
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ODD = [
    *("\t \t\n \n\n  x", "\r\n\r\n x \r", "a\u00a0b\u2003c\u3000d", " " * 50, "x" * 100),
    *("12345 3.1415 1,000,000 2024-11-28", "'s 't're I'll we've 'VE", "😀👍🏽👨‍👩‍👧 🇩🇪"),
    *("def f(x):\n\tif x >= 10:\n\t\treturn {'a': [1, 2]}\n", "e\u0301 é ﬁ Å", "한국어 العربية"),
    *("<|im_start|>user\nhi<|im_end|>\n", "<think>\n\n</think>\n\n", "a<think>b <|im_end|>"),
]
SIZES = {"family": "qwen2", "qk_norm": False, "post_norms": False, "activation": "silu"}
SIZES |= {"scaled_embedding": False, "biases": ("q", "k", "v"), "vocab_size": 640}


@functools.cache
def train(digits=False):
    """Pieces and merges that the tokenizers library finds in the prompts and odd texts.

    If digits are cut off, there are no merges of them, and transformers, which does not cut them
    off, makes the same tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    texts = all_prompts(get_game("ipd"), Presentation(labels=("action1", "action2")))
    tokenizer.train_from_iterator([*texts, *spellings(), *ODD], trainer)
    found = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(found["vocab"], key=found["vocab"].get)
    return [*pieces, *OWN], [" ".join(pair) for pair in found["merges"]]


@pytest.fixture(scope="module")
def trained():
    return train()


def write(path, trained, cutting, **given):
    """A file with a tokenizer and no weights."""
    pieces, merges = trained
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cutting)
    writer.add_token_list(pieces)
    writer.add_token_types([3 if p in SPECIAL else 4 if p in OWN else 1 for p in pieces])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    if "bos_token_id" in given:
        writer.add_bos_token_id(given["bos_token_id"])
    if "add_bos_token" in given:
        writer.add_add_bos_token(given["add_bos_token"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizers.build(GGUFModel(path).vocabulary())


@pytest.mark.parametrize("cutting", CUTTINGS)
def test_tokens_are_those_of_transformers_for_the_same_file(cutting, tmp_path):
    """Of Qwen's for composed texts, as its own tokenizer has them and that of its GGUF has not."""
    made = train(digits=cutting == "smollm")
    ours = write(tmp_path / "model.gguf", made, cutting, bos_token_id=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    compose = functools.partial(unicodedata.normalize, "NFC") if cutting == "qwen2" else str
    expected = [
        theirs.encode(compose(text), add_special_tokens=False) for text in [*spellings(), *ODD]
    ]
    tokenizers.save(ours, tmp_path / "saved")
    for tokenizer in (ours, tokenizers.load(tmp_path / "saved")):
        for text, tokens in zip([*spellings(), *ODD], expected, strict=True):
            assert tokenizer.encode(text, add_special_tokens=False) == tokens, text


def test_what_was_saved_is_read_as_transformers_reads_it(trained, tmp_path):
    """Tokens, pieces, roles and the chat template; what is missing or cut short is said."""
    folders = [tmp_path / "bytes", tmp_path / "words"]
    tokenizers.save(write(tmp_path / "m.gguf", trained, "llama-bpe", bos_token_id=0), folders[0])
    tokenizers.save(tokenizers.build(tiny_model.vocabulary()), folders[1])
    for folder in folders:
        ours = tokenizers.load(folder)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        for name in ("chat_template", "all_special_tokens", "bos_token_id", "eos_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert (ours.pad_token_id, ours.unk_token_id) == (theirs.pad_token_id, theirs.unk_token_id)
        assert str(ours.added_tokens_decoder) == str(theirs.added_tokens_decoder)
        assert ours.get_vocab() == theirs.get_vocab()
        assert tokenizers.byte_pieces(ours) == tokenizers.byte_pieces(theirs)
        for text in [*spellings(), *ODD]:
            tokens = theirs.encode(text)
            assert ours.encode(text) == tokens
            assert ours.decode(tokens) == theirs.decode(tokens)
        file = folder / "tokenizer.json"
        file.write_text(file.read_text()[:1000])
        with pytest.raises(ValueError, match=r"tokenizer\.json: EOF"):
            tokenizers.load(folder)
        file.unlink()
        with pytest.raises(ValueError, match=r"tokenizer\.json: "):
            tokenizers.load(folder)


@pytest.mark.parametrize(
    ("cutting", "given", "begin"),
    [
        ("llama-bpe", {"bos_token_id": 0}, [0]),
        ("llama-bpe", {"bos_token_id": 0, "add_bos_token": False}, []),
        ("smollm", {"bos_token_id": 1}, []),
        ("smollm", {"bos_token_id": 1, "add_bos_token": True}, [1]),
        ("qwen2", {}, []),
    ],
)
def test_texts_begin_as_the_file_says(trained, cutting, given, begin, tmp_path):
    tokenizer = write(tmp_path / "model.gguf", trained, cutting, **given)
    assert tokenizer.encode("") == begin
    assert tokenizer.encode("a b") == begin + tokenizer.encode("a b", add_special_tokens=False)


def test_pieces_are_the_bytes_of_texts(trained, tmp_path):
    tokenizer = write(tmp_path / "model.gguf", trained, "smollm")
    pieces = tokenizers.byte_pieces(tokenizer)
    for text in [*spellings(), *ODD]:
        tokens = [t for t in tokenizer.encode(text) if pieces[t] is not None]
        plain = text
        for special in SPECIAL:
            plain = plain.replace(special, "")
        assert b"".join(pieces[token] for token in tokens) == plain.encode()
    assert [token for token, piece in enumerate(pieces) if piece is None] == [0, 1, 2]


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """A tiny Qwen2.5 in a folder, loaded."""
    folder = tmp_path_factory.mktemp("qwen")
    tiny_model.write(folder, **SIZES)
    tokenizers.save(write(folder / "model.gguf", trained, "qwen2"), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return loading.load(str(folder))


@pytest.mark.parametrize("labels", [("A1", "B1"), ("a", "é"), ("no", "on")])
def test_labels_are_spelled_by_every_path_of_tokens(model, trained, labels):
    """All sequences of few tokens, their bytes by transformers' table."""
    byte = {character: number for number, character in bytes_to_unicode().items()}
    texts = {}
    for token, piece in enumerate(trained[0]):
        if piece not in SPECIAL:
            plain = piece.encode() if piece in OWN else bytes(byte[c] for c in piece)
            texts[token] = plain
    within = lambda text: any(text.strip(WHITESPACE) in label.encode() for label in labels)
    texts = {token: text for token, text in texts.items() if within(text)}
    spelled = Prompter(model, "plain").responses(labels)
    count = lambda text: len(model.tokenizer.encode(text, add_special_tokens=False))
    longest, stops = spelled.trie.prefix_edges.shape[-1], model.stop_tokens()
    assert longest == max(count(space + label) for space in ("", " ") for label in labels) <= 3
    joined = lambda tokens: b"".join(map(texts.get, tokens)).decode(errors="replace")
    expected = set()
    for length in range(1, longest + 1):
        for tokens in itertools.product(texts, repeat=length):
            text = joined(tokens)
            space = " " if text.startswith(" ") else ""
            label = text.removeprefix(" ").rstrip(WHITESPACE.decode())
            if label not in labels or length > count(space + label):
                continue  # another text, or in more tokens than the tokenizer takes
            ends = [()] if length == count(space + label) else [(stop,) for stop in stops]
            expected |= {((*tokens, *end), labels.index(label)) for end in ends}
    trie, found = spelled.trie, set()
    for edges, action in zip(trie.spelling_edges, trie.spelling_action, strict=True):
        tokens = tuple(int(trie.edge_token[edge]) for edge in edges if edge < trie.no_edge)
        found.add((tokens, int(action)))
    assert found == expected
    assert {action for _, action in found} == {0, 1}


def test_prompts_have_no_bos_and_chats_follow_the_template(model):
    assert model.bos_token() is None
    assert model.stop_tokens() == [0, 2]  # of a text and of a turn
    tokenizer = model.tokenizer
    assert Prompter(model, "plain").tokens("one two") == tokenizer.encode("one two")
    chat = Prompter(model, "chat").tokens("one")
    assert tokenizer.decode(chat) == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    assert chat.count(1) == 2


def test_a_chat_is_the_same_every_day(model):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = (  # as in Llama 3.2
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }}: {{ messages[0].content }}"
    )
    prompter = Prompter(dataclasses.replace(model, tokenizer=tokenizer), "chat")
    assert tokenizer.decode(prompter.tokens("one")) == "26 Jul 2024: one"


def test_a_folder_whose_tokenizer_begins_texts(trained, tmp_path):
    tiny_model.write(tmp_path, **SIZES)
    tokenizers.save(write(tmp_path / "model.gguf", trained, "llama-bpe", bos_token_id=0), tmp_path)
    model = loading.load(str(tmp_path))
    assert model.bos_token() == 0
    assert Prompter(model, "plain").tokens("one")[:2] == [0, *model.tokenizer.encode("one")[1:2]]
    assert model.tokenizer.backend_tokenizer.decoder.decode(["Ġone"]) == " one"
    assert isinstance(model.tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)
    path, stored = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    settings, whole = json.loads(path.read_text()), stored.read_text()
    prefixing = whole.replace('"add_prefix_space": false', '"add_prefix_space": true')
    assert prefixing != whole
    stored.write_text(prefixing)
    path.write_text(json.dumps(settings | {"add_prefix_space": True, "errors": "replace"}))
    assert loading.load(str(tmp_path)).tokenizer.encode("one") == model.tokenizer.encode(" one")
    stored.write_text(whole)
    for change, message in (
        ({"add_bos_token": False}, "its settings say add_bos_token False, itself True"),
        ({"add_prefix_space": True}, "add_prefix_space = True is not supported"),
        ({"bos_token": None}, "puts '<|endoftext|>' before a text, which is not its bos_token"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            loading.load(str(tmp_path))


def test_merges_that_make_no_vocabulary_are_refused(trained, tmp_path):
    pieces, merges = trained
    for spoiled in (["Ġ", *merges], ["x nothing", *merges]):
        with pytest.raises(UserError, match="the vocabulary makes no tokenizer"):
            write(tmp_path / "model.gguf", (pieces, spoiled), "qwen2")
    with pytest.raises(UserError, match="cannot hold 'a' as token"):
        write(tmp_path / "model.gguf", ([*pieces, "a"], merges), "qwen2")
