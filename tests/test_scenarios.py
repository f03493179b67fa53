"""Scenarios: what files say, how items are shown, exact probabilities, on a tiny model."""

import dataclasses
import json
import re
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from run_files import quiet

import jaxmoral
from jaxmoral import config as configs
from jaxmoral import evaluate as evaluate_command
from jaxmoral.errors import UserError
from jaxmoral.language import scenarios
from jaxmoral.language.prompt_tree import pack
from jaxmoral.language.scenarios import (
    LABEL_SETS,
    SUITES,
    Item,
    Option,
    ScenarioSuite,
    all_tags,
    parse_item,
    read_suite,
    shown,
    views,
)
from jaxmoral.learning.training import fit_agent
from jaxmoral.measuring import choices
from jaxmoral.measuring.choices import choose
from jaxmoral.measuring.runs import read_run, tidy
from jaxmoral.measuring.scenarios import describe_suite, evaluate_scenarios, svo_angle
from jaxmoral.measuring.source import load_source

FLAGS = ["--prompt.labels", "[X, Y]", "--updates", "2", "--env.episodes", "64"]
FLAGS += ["--ppo.learning_rate", "0.01", "--lora.targets", "[q, down]"]
GOOD = {
    "text": "You share a game with A.",
    "options": [
        {"text": "give", "tags": ["other"], "payoffs": [5, 5]},
        {"text": "keep", "tags": ["self"], "payoffs": [10, 0]},
    ],
}
THREE = {"text": "What is next?", "options": ["the first", "the second", "the third"]}


@pytest.fixture(scope="module")
def trained(shallow):
    config = configs.load(None, [*FLAGS, "--model.source", str(shallow)])
    return fit_agent(config, say=quiet)


@pytest.fixture(scope="module")
def loaded(trained):
    return load_source(trained)


def test_shipped_suites_are_what_the_manual_says():
    suites = {name: read_suite(name)[0] for name in SUITES}
    assert list(suites) == ["dictator", "dilemmas", "norms", "svo"]
    for suite in suites.values():
        texts = [(item.text, item.options) for item in suite.items]
        assert len(set(texts)) == len(texts)
    classes = Counter(item.group for item in suites["dilemmas"].items)
    assert len(classes) >= 5
    assert set(classes.values()) == {8}
    for group in classes:
        alike = [item for item in suites["dilemmas"].items if item.group == group]
        first = ["moral" in item.options[0].tags for item in alike]
        assert sum(first) == 4
        for item in alike:
            assert ["moral" in option.tags for option in item.options].count(True) == 1
    assert len(suites["norms"].items) >= 20
    kinds = {item.group for item in suites["norms"].items}
    assert kinds == {"promises", "fairness", "honesty", "harm"}
    moral = [tuple("moral" in option.tags for option in i.options) for i in suites["norms"].items]
    assert 0.3 < np.mean([tags[0] for tags in moral]) < 0.7
    for item in suites["dictator"].items:
        for option in item.options:
            kept, given = option.payoffs
            assert kept + given == 10
            assert re.findall(r"\d+", option.text) == [f"{kept:.0f}", f"{given:.0f}"]


def test_the_slider_items_are_the_published_ones():
    """Ends and middles as in the paper's table; the rest lies evenly between."""
    suite, _ = read_suite("svo")
    sliders = [item for item in suite.items if item.group == suite.angle_of]
    ends = [(item.options[0].payoffs, item.options[-1].payoffs) for item in sliders]
    assert ends == [
        ((85, 85), (85, 15)),
        ((85, 15), (100, 50)),
        ((50, 100), (85, 85)),
        ((50, 100), (85, 15)),
        ((100, 50), (50, 100)),
        ((100, 50), (85, 85)),
    ]
    for item in sliders:
        points = np.array([option.payoffs for option in item.options])
        assert points.shape == (9, 2)
        even = np.linspace(points[0], points[-1], 9)
        assert np.abs(points - even).max() <= 0.5
        for option in item.options:
            own, other = map(int, re.findall(r"\d+", option.text))
            assert (own, other) == option.payoffs
    assert Counter(item.group for item in suite.items) == {"slider": 6, "pairs": 18}


def test_the_angle_of_known_characters():
    """The published angles: an altruist, an individualist, a competitor; 45 is equal weight."""
    points = [
        np.array([option.payoffs for option in item.options])
        for item in read_suite("svo")[0].items
        if item.group == "slider"
    ]
    chosen = lambda worth: np.mean([rows[np.argmax(rows @ worth)] for rows in points], 0)
    assert svo_angle(chosen(np.array([0.001, 1]))) == pytest.approx(61.39, abs=0.5)
    assert svo_angle(chosen(np.array([1, 0.001]))) == pytest.approx(7.82, abs=0.5)
    assert svo_angle(chosen(np.array([1, -1.0]))) == pytest.approx(-16.26, abs=0.5)
    assert svo_angle(np.array([60.0, 60])) == pytest.approx(45)


@pytest.mark.parametrize("number", range(2, 10))
def test_every_option_is_as_often_in_every_place(number):
    ways = views(number, tuple(LABEL_SETS))
    places = Counter((place, index) for way in ways for place, index in enumerate(way.order))
    assert len(places) == number**2
    assert len(set(places.values())) == 1
    assert {way.label_set for way in ways} == set(LABEL_SETS)
    if number <= 4:
        assert len(ways) == number * len(LABEL_SETS)


def test_an_item_is_shown_with_its_labels_in_order():
    item = parse_item(THREE, "x", "here")
    text = shown(item, views(3, ("digits",))[1], "Be kind.")
    assert text.splitlines() == [
        "Be kind.",
        "",
        "What is next?",
        "1: the second",
        "2: the third",
        "3: the first",
        "What do you choose? Reply only 1, 2 or 3.",
        "Answer:",
    ]


def test_packed_together_each_item_has_its_own_probabilities(loaded, monkeypatch):
    """However many lie in a forest, in whatever shape, they are what each is alone."""
    items = [
        GOOD,
        THREE,
        {"text": "A and you, a long story " * 5, "options": ["one", "two"]},
        {"text": "Points", "options": [str(number) for number in range(20, 29)]},
    ]
    monkeypatch.setattr(choices, "MOST_NODES", 200)
    together = evaluate_scenarios(loaded, items)
    for number, raw in enumerate(items, 1):
        alone = evaluate_scenarios(loaded, [raw])["items"]["item-1"]
        found = together["items"][f"item-{number}"]
        for policy in ("base", "tuned"):
            ours, theirs = found["policies"][policy], alone["policies"][policy]
            np.testing.assert_allclose(ours["options"], theirs["options"], atol=1e-5)
            total = sum(ours["options"]) + ours["illegal"]
            assert total == pytest.approx(1, abs=1e-4)
            assert sum(ours["of_legal"]) == pytest.approx(1, abs=1e-4)
    json.dumps(together)


def test_probabilities_are_products_of_next_token_probabilities(loaded, trained):
    """Every spelling, token by token through the decoder; nothing of the packing is used."""
    options = ["X", "A1", "Y"]
    answers = choose(trained, "What do you say?", options)
    prompter, policy = loaded.agent.prompter, loaded.agent.policy
    trie = prompter.options(tuple(options)).trie
    ids = prompter.tokens("What do you say?")

    def log_prob(sequence):
        tree, _ = pack([[*ids, *sequence]])
        model = policy.bind(loaded.agent.frozen, None)
        hidden = model.hidden(tree, loaded.trained, None)[: len(ids) + len(sequence)]
        log_probs = jax.nn.log_softmax(model.model().logits(hidden))
        return sum(log_probs[len(ids) - 1 + i, token] for i, token in enumerate(sequence))

    expected = np.zeros(len(options))
    for edges, action in zip(trie.spelling_edges, trie.spelling_action, strict=True):
        tokens = [int(trie.edge_token[edge]) for edge in edges if edge < trie.no_edge]
        expected[action] += np.exp(log_prob(tokens))
    found = [answers["tuned"][option] for option in options]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert sum(answers["tuned"].values()) == pytest.approx(1, abs=1e-4)
    assert answers["tuned"] != answers["base"]


def test_nothing_is_compiled_for_an_item(loaded):
    """Sixty items of as many lengths, and no more programs than shapes."""
    items = [
        {"text": f"{number} points " * (1 + number % 20), "options": ["give", "keep"]}
        for number in range(60)
    ]
    evaluate_scenarios(loaded, items[:1])
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        evaluate_scenarios(loaded, items)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    programs = [event for event in compiled if event.endswith("backend_compile_duration")]
    assert len(programs) <= choices.MOST_SHAPES + 2  # one draws the base's adapter


def test_a_persona_goes_first(loaded, monkeypatch):
    found = evaluate_scenarios(loaded, [GOOD], persona="You are a utilitarian.")
    plain = evaluate_scenarios(loaded, [GOOD])
    assert found["persona"] == "You are a utilitarian."
    assert found["items"] != plain["items"]
    by_hand = dict(GOOD, text=f"You are a utilitarian.\n\n{GOOD['text']}")
    assert evaluate_scenarios(loaded, [by_hand])["measures"] == found["measures"]
    # Of who was trained behind one it is that, unless told.
    shown = loaded.agent.presentation._replace(persona="You are a utilitarian.")
    behind = loaded._replace(agent=loaded.agent._replace(presentation=shown))
    assert evaluate_scenarios(behind, [GOOD]) == found
    assert evaluate_scenarios(behind, [GOOD], persona="none") == plain


def test_measures_are_what_the_items_say():
    """Two items by hand: by tag, of legal, payoffs, and a change with its interval."""
    options = (Option("a", ("good",), (0.0, 10.0)), Option("b", ("bad",), (10.0, 0.0)))
    items = (Item("one", "t", options, "g"), Item("two", "u", options))
    base = [np.array([[0.1, 0.3, 0.6]]), np.array([[0.2, 0.2, 0.6], [0.0, 0.4, 0.6]])]
    tuned = [np.array([[0.4, 0.4, 0.2]]), np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])]
    suite = ScenarioSuite("s", items)
    found = describe_suite(suite, {"base": base, "tuned": tuned}, ["good", "bad"])
    measures = found["measures"]["all"]
    assert measures["good"]["base"]["mean"] == pytest.approx(0.1)
    assert measures["good of legal"]["base"]["mean"] == pytest.approx(0.25)
    assert measures["good of legal"]["change"]["mean"] == pytest.approx(0.25)
    assert measures["illegal"]["change"]["mean"] == pytest.approx(-0.5)
    assert measures["payoff other"]["base"]["mean"] == pytest.approx(2.5)
    assert measures["payoff own"]["tuned"]["mean"] == pytest.approx(5)
    assert found["items"]["two"]["policies"]["base"]["spread"] == pytest.approx(0.5)
    # Of two items a resample is one of them, the other, or both: the interval ends at these.
    shown = measures["illegal"]["change"]
    assert (shown["low"], shown["high"]) == pytest.approx((-0.6, -0.4))
    assert found["measures"]["g"]["good"]["items"] == 1


def test_intervals_cover_as_they_should():
    """Over many draws of thirty items, about 95 % of the intervals hold the true mean."""
    generator, covered = np.random.default_rng(0), 0
    options = (Option("a", ("good",)), Option("b"))
    suite = ScenarioSuite("s", tuple(Item(str(n), "t", options) for n in range(30)))
    for _ in range(200):
        shares = generator.beta(2, 3, size=30)
        base = [np.array([[share, 1 - share, 0.0]]) for share in shares]
        shown = describe_suite(suite, {"base": base}, ["good"])["measures"]["all"]["good"]["base"]
        covered += shown["low"] <= 0.4 <= shown["high"]
    assert 0.88 <= covered / 200 <= 0.99


BAD = {
    "one option": ({"text": "t", "options": ["a"]}, "options: needs a list of 2 to 9, got 1"),
    "ten": (
        {"text": "t", "options": list("abcdefghij")},
        "options: needs a list of 2 to 9, got 10",
    ),
    "equal": ({"text": "t", "options": ["a", "a"]}, r"options\[1\]: the same text as another, 'a'"),
    "no text": ({"options": ["a", "b"]}, "text: needs a text, got None"),
    "no option text": ({"text": "t", "options": ["a", {"tags": ["x"]}]}, r"options\[1\], text"),
    "unknown": (dict(GOOD, colour=1), "colour: unknown; an item has id, group, text, options"),
    "tags": ({"text": "t", "options": ["a", {"text": "b", "tags": "x"}]}, r"options\[1\], tags"),
    "a measure": (
        {"text": "t", "options": ["a", {"text": "b", "tags": ["x", "illegal"]}]},
        r"options\[1\], tags: 'illegal' is the name of a measure",
    ),
    "whole": (dict(GOOD, group="all"), "group: all is the name of all items together"),
    "half an id": (dict(GOOD, id="\ud83d"), "(id: holds half a|.*no YAML)"),
    "half a group": (dict(GOOD, group="\ud83d"), "(group: holds half a|.*no YAML)"),
    "much": ({"text": 10**400, "options": ["a", "b"]}, "(text: needs a finite|.*no YAML)"),
    "half": ({"text": "\ud83d", "options": ["a", "b"]}, "(text: holds half a|.*no YAML)"),
    "payoffs": (
        {"text": "t", "options": ["a", {"text": "b", "payoffs": [1]}]},
        r"options\[1\], payoffs: needs \[own, other's\], got \[1\]",
    ),
    "some payoffs": (
        {"text": "t", "options": ["a", {"text": "b", "payoffs": [1, 2]}]},
        "options: all of them have payoffs, or none",
    ),
    "numbers": (
        {"text": "t", "options": ["a", {"text": "b", "payoffs": [1, "x"]}]},
        r"options\[1\], payoffs: needs a finite number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_item_is_named_with_its_file_line_and_field(case, tmp_path):
    raw, message = BAD[case]
    lines = tmp_path / "some.jsonl"
    lines.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(raw)}\n")
    with pytest.raises(UserError, match=f"some.jsonl, line 3, {message}"):
        read_suite(lines)
    suite, lost = read_suite(lines, skip=True)
    assert len(suite.items) == len(lost) == 1
    assert "line 3" in lost[0]
    listed = tmp_path / "some.yaml"
    listed.write_text(f"# items\n- {json.dumps(GOOD)}\n- {json.dumps(raw)}\n")
    with pytest.raises(UserError, match=f"some.yaml, line 3, {message}"):
        read_suite(listed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "", "a.yaml: it is empty"),
        ("a.yaml", "text: x", "a.yaml, text: unknown; a suite has items, angle_of"),
        ("a.yaml", "just words", "a.yaml: needs a list of items"),
        ("a.yaml", "- [1, 2", "a.yaml: no YAML"),
        ("a.yaml", "- 3", "a.yaml, line 1: needs an item with id, group, text, options"),
        (
            "a.yaml",
            "- {text: t, options: [yes, no]}",
            r"line 1, options\[0\]: needs a text, got True",
        ),
        (
            "a.yaml",
            f"angle_of: x\nitems: [{json.dumps(GOOD)}]",
            "angle_of: no item of the group 'x' has payoffs",
        ),
        (
            "a.yaml",
            "- {id: 2024-02-30, text: t, options: [a, b]}",
            "a.yaml: no YAML .*out of range",
        ),
        ("a.yaml", "[" * 2000, "a.yaml: no YAML"),
        ("a.jsonl", "[" * 200_000, "a.jsonl, line 1: no JSON"),
        ("a.yaml", "? [a, b]\n: 1\nitems: []", "a.yaml"),
        ("a.yaml", "- text: one\n  text: two", "a.yaml: no YAML .*'?text'? stands twice"),
        ("a.jsonl", '{"text": "x", "text": "y"}', "line 1: no JSON .*text'? stands twice"),
        ("a.csv", "label,label,input\n0,1,hello\n", "the column label stands twice"),
        ("norms.yaml", f"- {json.dumps(GOOD)}", "norms.yaml is called like a suite of ours"),
        ("a.csv", 'He said "hi" to "me",x\n', "a.csv, line 1: columns of no known"),
        ("a.csv", '"He said "hi" to me",x\n', "a.csv, line 1: no CSV"),
        ("a.jsonl", "{", "a.jsonl, line 1: no JSON"),
        ("a.jsonl", "[1]", "a.jsonl, line 1: needs an object"),
        ("a.xlsx", "x", "needs a file that ends in .yaml, .jsonl or .csv"),
        ("a.csv", "x,y\n1,2\n", "a.csv, line 1: columns of no known format"),
        ("a.jsonl", json.dumps(GOOD | {"id": "x"}) * 2, "a.jsonl, line 1: no JSON"),
    ],
)
def test_another_format_is_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_suite(path)


def test_names_are_unique_and_unknown_suites_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(GOOD | {'id': 'x'})}\n" * 2)
    with pytest.raises(UserError, match="line 2, id: 'x' is another item's too"):
        read_suite(path)
    with pytest.raises(UserError, match="unknown name 'dictators' .did you mean 'dictator'"):
        read_suite("dictators")


def test_items_made_in_python_are_judged_too():
    one = Item("one", "t", (Option("a"), Option("a")))
    with pytest.raises(UserError, match=r"item 2, options\[1\]: the same text as another"):
        scenarios.make_items([GOOD, one])
    options = (Option("a", ("kind",), (1.0, 2.0)), Option("b", (), (3.0, 0.5)))
    fine = Item("two", "t", options, "group")
    assert scenarios.make_items([fine]) == (fine,)


def test_what_cannot_be_measured_is_said(loaded):
    with pytest.raises(UserError, match="tags: no option of items has 'harm'; other, self"):
        evaluate_scenarios(loaded, [GOOD], tags=["harm"])
    with pytest.raises(UserError, match="label_sets: unknown name 'greek'"):
        evaluate_scenarios(loaded, [GOOD], label_sets=["greek"])
    with pytest.raises(UserError, match="there is no item"):
        evaluate_scenarios(loaded, [])
    long = {"id": "long", "text": "1 2 3 4 " * 1900, "options": ["a", "b"]}
    with pytest.raises(UserError, match="items, long, text: it takes .* tokens"):
        evaluate_scenarios(loaded, [GOOD, long])
    with pytest.raises(UserError, match="update: only a run's folder holds checkpoints"):
        load_source(loaded.config, update=2)
    tabular = jaxmoral.parse({"model": {"source": "tabular"}})
    with pytest.raises(UserError, match="a tabular policy has no language"):
        evaluate_scenarios(tabular, [GOOD])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["yes"], "two or more options"),
        ("yes", "two or more options"),
        (["yes", "yes, but"], "'yes' and 'yes, but' cannot be told apart"),
        (["yes, but", "yes"], "'yes, but' and 'yes' cannot be told apart"),
        (["yes", "yes"], "cannot be told apart"),
        (["yes", " no"], "without outer white space"),
        (["legal", "illegal"], "'illegal' is what is said of all other answers"),
    ],
)
def test_options_that_cannot_be_told_apart_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        choose("nowhere", "What?", options)


def test_who_thinks_reads_a_question_as_everybody_does(trained, loaded):
    """And answers it without a thought."""
    tree = configs.to_dict(trained.config)
    tree["prompt"]["wording"], tree["thinking"] = "structured", {"tokens": 2, "thoughts": 2}
    thinks = load_source(configs.parse(tree))
    assert thinks.agent.prompter.opens
    asked = "Say X or Y.", ["X", "Y"]
    assert choose(thinks, *asked)["base"] == pytest.approx(choose(loaded, *asked)["base"])


def test_who_diverged_is_not_measured(trained):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, trained.state.players.trainable)
    state = trained.state._replace(players=trained.state.players._replace(trainable=broken))
    with pytest.raises(UserError, match="its training diverged"):
        load_source(dataclasses.replace(trained, state=state))


def test_tags_are_listed_once():
    suite = ScenarioSuite("s", scenarios.make_items([GOOD, GOOD | {"id": "again"}, THREE]))
    assert all_tags(suite) == ["other", "self"]


def test_a_long_list_is_read(tmp_path):
    """Longer than a configuration may be."""
    path = tmp_path / "some.yaml"
    items = [GOOD | {"id": str(number), "text": "word " * 200} for number in range(450)]
    path.write_text("".join(f"- {json.dumps(item)}\n" for item in items))
    assert path.stat().st_size > 450_000
    assert len(read_suite(path)[0].items) == 450


def test_a_line_ends_where_json_says(tmp_path):
    """Which may hold other marks of a line's end as they are."""
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(GOOD | {"text": "one\u2028two"}, ensure_ascii=False) + "\n")
    assert read_suite(path)[0].items[0].text == "one\u2028two"


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit_agent(trained.config, folder, say=quiet)
    return folder


def test_the_command_keeps_and_shows_what_was_asked(run_folder, tmp_path, monkeypatch, capsys):
    lines = tmp_path / "mine.jsonl"
    lines.write_text(f"{json.dumps(GOOD)}\n{json.dumps({'text': 't', 'options': ['a']})}\n")
    texts = tmp_path / "words.txt"
    texts.write_text("You are in a game with another player.")
    asked = ["--games", "ipd", "--protocols", "exact", "--opponents", "random"]

    def evaluate(*flags):
        monkeypatch.setattr(sys, "argv", ["x", "--run", str(run_folder), *asked, *flags])
        evaluate_command.main()
        return capsys.readouterr()

    twin = tmp_path / "other" / "mine.jsonl"
    twin.parent.mkdir()
    twin.write_text(f"{json.dumps(GOOD)}\n")
    with pytest.raises(SystemExit):
        evaluate("--scenarios", f"{twin},{lines}", "--skip-bad-items")
    assert "--scenarios: two suites are called mine" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        evaluate("--scenarios", str(lines))
    assert ended.value.code == 2
    assert "mine.jsonl, line 2, options: needs a list" in capsys.readouterr().err
    assert not (run_folder / "evaluation.json").exists()
    said = evaluate("--scenarios", str(lines), "--skip-bad-items", "--retention", str(texts))
    assert "left out: " in said.err
    assert "scenarios mine: 1 items" in said.out
    (row,) = re.findall(r"^all    self of legal +1 .*$", said.out, re.MULTILINE)
    kept = json.loads((run_folder / "evaluation.json").read_text())
    change = kept["scenarios"]["mine"]["measures"]["all"]["self of legal"]["change"]["mean"]
    assert f"{100 * change:+.1f}%" in row
    assert kept["retention"]["words.txt"]["all"]["kl"] > 0
    said = evaluate("--scenarios", "dictator", "--label-sets", "letters", "--tags", "self,equal")
    both = json.loads((run_folder / "evaluation.json").read_text())
    assert list(both["scenarios"]) == ["mine", "dictator"]
    assert both["retention"] == kept["retention"]
    assert both["scenarios"]["dictator"]["tags"] == ["self", "equal"]
    said = evaluate("--scenarios", "dictator", "--scenario-persona", "utilitarian")
    assert "replaced trained: ipd against random, exact" in said.out
    assert "scenarios dictator, utilitarian: 16 items" in said.out
    table = tidy([read_run(run_folder)])
    found = table[(table["suite"] == "scenarios: dictator") & (table["condition"] == "all")]
    assert {"base", "tuned", "change"} == {*found["policy"]}
    assert {"self", "self of legal/low", "payoff other"} <= {*found["metric"]}
    assert {*table[table["suite"] == "retention: words.txt"]["metric"]} == {
        "perplexity",
        "kl",
        "agreement",
    }
