"""Evaluation against closed forms, and against an agent's own table."""

import dataclasses
import itertools
import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.language.novelty import Seen
from jaxmoral.language.prompts import Presentation
from jaxmoral.language.suites import Subject, conditions, is_redrawn
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.first_state import first_states
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.trained import TrainedAgent
from jaxmoral.measuring import evaluation
from jaxmoral.measuring.evaluation import evaluate_agent, group_by_size
from jaxmoral.measuring.results import table
from jaxmoral.world.chain import against, visits
from jaxmoral.world.games import GAMES, get_game
from jaxmoral.world.memory import make_memory
from jaxmoral.world.opponents import get_opponent
from jaxmoral.world.streams import Streams

SURE = 40.0
measure = partial(evaluate_agent, protocols=["exact"])


def player(choice):
    """A trained tabular agent that answers the opponent's previous move with `choice[move]`."""
    return with_logits(SURE * np.eye(3)[np.array([choice] * 2).reshape(4)])


def with_logits(logits, *flags):
    """A trained tabular agent, given its logits `[num_histories, 3]`."""
    config = resolve(configs.load(None, ["--model.source", "tabular", *flags]))
    each = np.repeat(np.asarray(logits, np.float32), 4, 0)
    stacked = {"logits": each[None], "values": np.zeros((1, len(each)), np.float32)}
    state = SimpleNamespace(players=SimpleNamespace(trainable=stacked), update=config.updates)
    return TrainedAgent(config, make_agent(config), state, [])


def exact(evaluation, game, opponent="random", policy="tuned"):
    return played(evaluation, game)[policy]["opponents"][opponent]["exact"]


def played(evaluation, game):
    return evaluation["suites"]["trained"][game]["policies"]


def test_no_key_of_an_evaluation_is_one_of_training(monkeypatch):
    """Neither the conditions' keys nor those made from them; training folds in its updates."""
    given = []

    def stop(policy, tested, **settings):
        given.append(tested.key)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure", stop)
    agent = player((0, 0))
    with pytest.raises(KeyboardInterrupt):
        evaluate_agent(agent)
    _, updates_key = first_states([agent.config], agent.agent)
    data = lambda keys: {row.tobytes() for row in np.asarray(jax.random.key_data(keys))}
    of_updates = jax.vmap(partial(jax.random.fold_in, updates_key))(np.arange(1000))
    in_updates = jax.vmap(partial(jax.random.split, num=3))(of_updates).ravel()
    of_conditions = jax.random.split(given[0], 1000)
    theirs = data(of_updates) | data(in_updates) | data(updates_key[None])
    assert len(theirs) == 4001
    assert not theirs & (data(of_conditions) | data(given[0][None]))


def test_regrets_of_an_unconditional_cooperator():
    result = measure(player((0, 0)))
    assert set(result["suites"]["trained"]) == set(GAMES)
    for name, game in GAMES.items():
        joint = game.payoffs.sum(0)
        regret = exact(result, name)["regret"]
        assert regret["deontological"]["points"] == pytest.approx(0, abs=1e-5)
        # Half of a random opponent's moves are C.
        points = joint.max() - joint[0].mean()
        assert regret["utilitarian"]["points"] == pytest.approx(points, abs=1e-4)
        normalised = points / (joint.max() + 6)
        assert regret["utilitarian"]["normalised"] == pytest.approx(normalised, abs=1e-5)


def test_regrets_of_a_defector_and_of_nonsense():
    defector = exact(measure(player((1, 1))), "ipd")
    assert defector["regret"]["deontological"]["points"] == pytest.approx(1.5, abs=1e-4)
    assert defector["action_types"]["D|C"] == pytest.approx(0.5, abs=1e-5)
    nonsense = exact(measure(player((2, 2))), "ipd")
    assert nonsense["regret"]["deontological"]["normalised"] == pytest.approx(1)
    assert nonsense["regret"]["utilitarian"]["normalised"] == pytest.approx(1)
    assert nonsense["action_types"]["illegal|D"] == pytest.approx(0.5, abs=1e-5)


def test_mirroring_agent_meets_tit_for_tat():
    result = measure(player((0, 1)), ["ipd"], ["tit-for-tat", "always-defect"])
    kinds = exact(result, "ipd", "tit-for-tat")["action_types"]
    assert kinds["C|C"] == pytest.approx(0.5, abs=1e-5)
    assert kinds["D|D"] == pytest.approx(0.5, abs=1e-5)
    kinds = exact(result, "ipd", "always-defect")["action_types"]
    assert kinds["D|D"] == pytest.approx(1, abs=1e-5)


TRIO = ["--env.game", "public-goods(3)", "--env.opponent", "random"]
TRIO += ["--evaluation.games", "[public-goods(3)]"]
# How many histories the agent knows, and the configuration.
MEMORIES = {
    "one round": (4, []),
    "nothing": (1, ["--env.memory", "0"]),
    "two rounds": (16, ["--env.memory", "2"]),
    "blank start": (5, ["--env.blank_start", "true"]),
    "three players": (6, TRIO),
}


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORIES)
def test_exact_and_sampled_agree(memory):
    size, flags = MEMORIES[memory]
    agent = with_logits(np.random.default_rng(0).normal(size=(size, 3)), *flags)
    second = "conditional" if flags is TRIO else "tit-for-tat"
    result = evaluate_agent(agent, None, ["random", second])
    # Shares of 100,000 episodes; at most the error of as many coins.
    assert 0 < result["largest_gap"] < 5 * 0.5 / np.sqrt(100_000)
    for game in result["suites"]["trained"].values():
        for policy in game["policies"].values():
            for both in policy["opponents"].values():
                assert set(both) == {"exact", "long-run", "sampled"}
                for name, value in both["exact"]["rewards"].items():
                    assert both["sampled"]["rewards"][name] == pytest.approx(value, abs=0.1)


def test_the_long_run_is_stationary():
    """Tit-for-tat hands the agent its own move of two rounds ago: C with 0.9 after C, 0.3 after D.

    Grim trigger is sure to meet a D one day.
    """
    choices = np.log([[0.9, 0.1, 1e-12], [0.3, 0.7, 1e-12]] * 2)
    result = evaluate_agent(with_logits(choices), ["ipd"], ["tit-for-tat", "grim-trigger"])
    found = played(result, "ipd")["tuned"]["opponents"]
    copied = found["tit-for-tat"]["long-run"]
    assert copied["outcomes"]["C"] == pytest.approx(0.3 / (0.1 + 0.3), abs=1e-5)
    assert copied["action_types"]["C|C"] == pytest.approx(0.75 * 0.9, abs=1e-5)
    assert found["grim-trigger"]["long-run"]["reciprocity"]["D"] == pytest.approx(0.7, abs=1e-5)
    assert found["grim-trigger"]["long-run"]["outcomes"]["C"] == pytest.approx(0.3, abs=1e-5)
    assert found["grim-trigger"]["exact"]["outcomes"]["C"] > 0.35


@pytest.mark.parametrize(
    ("memory", "asked", "message"),
    [
        ("two rounds", {"protocols": ["paper"]}, "paper needs two players, env.memory 1 and"),
        ("blank start", {"protocols": ["paper"]}, "paper needs two players, env.memory 1 and"),
        ("three players", {"protocols": ["paper"]}, "paper needs two players, env.memory 1 and"),
        ("three players", {"games": ["ipd"]}, "evaluation.games: ipd has 2 players"),
        ("three players", {"games": ["plane"]}, "plane has no game of 3 players"),
    ],
)
def test_what_an_agent_does_not_know_is_refused(memory, asked, message):
    size, flags = MEMORIES[memory]
    with pytest.raises(UserError, match=message):
        evaluate_agent(with_logits(np.zeros((size, 3)), *flags), **asked)


def test_all_games_are_those_an_agent_can_play_with_its_own_among_them():
    size, flags = MEMORIES["three players"]
    alone = measure(with_logits(np.zeros((size, 3)), *flags), games=["all"])
    assert len(alone["suites"]["trained"]) == 1
    flags = ["--env.game", "donation(3,1)"]
    among = measure(with_logits(np.zeros((4, 3)), *flags), games=["all"])
    assert list(among["suites"]["trained"])[-1] == "donation(3,1)"
    assert len(among["suites"]["trained"]) == 7


def test_base_stands_beside_tuned():
    result = measure(player((0, 0)))
    assert result["policies"] == ["base", "tuned"]
    base = played(result, "ipd")["base"]["remembered"]["CD"]
    assert base == pytest.approx({"C": 1 / 3, "D": 1 / 3, "illegal": 1 / 3}, abs=1e-5)
    shares = visits(
        against(make_memory(), get_opponent("random")), np.full((4, 3), 1 / 3), num_rounds=5
    )
    kinds = exact(result, "ipd", policy="base")["action_types"]
    after_d = np.asarray(shares)[[1, 3]]  # CD and DD
    assert kinds["C|D"] == pytest.approx(float(after_d[:, 0].sum()), abs=1e-5)


def test_an_untrained_model_alone():
    result = measure(configs.load(None, ["--model.source", "tabular"]), ["bos"])
    assert result["policies"] == ["base"]
    assert list(result["suites"]["trained"]) == ["bos"]


def test_table_and_json():
    result = evaluate_agent(player((0, 1)))
    assert json.loads(json.dumps(result)) == result
    text = table(result)
    lines = [line.split() for line in text.splitlines()]
    # C after CC, CD, DC, DD; C and illegal in all; deontological and utilitarian regret.
    cells = ["100.0%", "0.0%", "100.0%", "0.0%", "50.0%", "0.0%", "0.00", "0.167"]
    assert ["ipd", "tuned", *cells] in lines
    gap = f"{100 * result['largest_gap']:.2f} percentage points."
    assert f"Exact and sampled shares differ by at most {gap}" in text


def blocks(result):
    """The printed tables by title: the head, cells by (condition, policy), and all below it."""
    lines = table(result).splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("suite ")]
    found = {}
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        head, rest = lines[start + 1].split()[2:], lines[start + 3 : end]
        rows = [line.split() for line in rest if "%" in line]
        cells = {tuple(row[:2]): row[2:] for row in rows}
        assert all(len(line) <= 100 for line in rest)
        found.setdefault(lines[start], []).append((lines[start + 1], cells, "\n".join(rest)))
        assert head
    return found


def test_every_opponent_and_protocol_is_printed():
    opponents, kinds = ["random", "tit-for-tat"], ["exact", "long-run"]
    result = evaluate_agent(player((0, 1)), ["ipd", "bos"], opponents, protocols=kinds)
    del played(result, "bos")["base"]["opponents"]["tit-for-tat"]  # as where two were merged
    found = blocks(result)
    titles = [f"{opponent}, {kind}" for opponent in opponents for kind in kinds]
    assert list(found) == [f"suite trained: against {title}" for title in titles]
    for title in titles:
        ((header, cells, below),) = found[f"suite trained: against {title}"]
        opponent, protocol = title.split(", ")
        first = title == titles[0]
        assert ("P(C|CC)" in header) == ("P(C|CD)" in below) == first  # the note is under its table
        assert len(cells) == (4 if opponent == "random" else 3)
        for (game, policy), texts in cells.items():
            measured = played(result, game)[policy]["opponents"][opponent][protocol]
            regret = measured["regret"]
            assert texts[-4:] == [
                f"{measured['outcomes']['C']:.1%}",
                f"{measured['outcomes']['illegal']:.1%}",
                f"{regret['deontological']['points']:.2f}",
                f"{regret['utilitarian']['normalised']:.3f}",
            ]


@pytest.mark.parametrize("rounds", [2, 3])
def test_what_follows_several_remembered_rounds_is_printed(rounds):
    logits = np.random.default_rng(0).normal(size=(4**rounds, 3))
    agent = with_logits(logits, "--env.memory", str(rounds))
    result = evaluate_agent(agent, ["ipd"], protocols=["exact"])
    found = blocks(result)
    tables = found["suite trained: after remembered rounds"]
    heads = re.findall(r"P\(C\|([CD ]+)\)", " ".join(header for header, _, _ in tables))
    remembered = played(result, "ipd")["tuned"]["remembered"]
    assert heads == list(remembered)
    texts = [text for _, cells, _ in tables for text in cells["ipd", "tuned"]]
    assert texts == [f"{p['C']:.1%}" for p in remembered.values()]
    assert "the oldest round first" in tables[-1][2]
    ((header, _, below),) = found["suite trained: against random, exact"]
    assert "P(C|" not in header + below


def test_a_digit_of_several_others_is_explained():
    agent = with_logits(np.zeros((6, 3)), *TRIO)
    said = table(evaluate_agent(agent, ["public-goods(3)"], protocols=["exact"]))
    assert "P(C|D2)" in said
    assert "the agent's move first, then how many of the others played D, the oldest" in said


@pytest.mark.parametrize("length", [85, 120])
def test_long_names_of_conditions_leave_room_for_what_follows_rounds(length):
    agent = with_logits(np.zeros((16, 3)), "--env.memory", "2")
    result = evaluate_agent(agent, ["ipd"], protocols=["exact"])
    result["suites"]["trained"] = {"x" * length: result["suites"]["trained"]["ipd"]}
    assert table(result).count("P(C|") == 16 + 1  # and in the note


def test_bad_names(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        evaluate_agent(tmp_path)
    with pytest.raises(UserError, match="^evaluation.games: unknown name 'chess'"):
        evaluate_agent(player((0, 1)), ["chess"])
    with pytest.raises(UserError, match="^evaluation.opponents: unknown name 'you'"):
        evaluate_agent(player((0, 1)), None, ["you"])


def test_the_papers_protocol_is_a_shared_trajectory(monkeypatch):
    """10 x 5 rounds from the paper's streams; the base answers what the tuned agent saw."""
    result = evaluate_agent(player((0, 1)), ["ipd", "icd"], protocols=["paper"])
    draws = Streams(100).draw(10, 5)
    kinds = dict.fromkeys(("C|C", "C|D", "D|C", "D|D"), 0)
    for episode in range(10):
        other = int(draws.other[episode])
        for turn in range(5):
            kinds["CD"[other] + "|" + "CD"[other]] += 1 / 50  # it repeats the opponent's move
            other = int(draws.coin[turn, episode])
    for game in ("ipd", "icd"):  # seeded alike for every game
        found = played(result, game)["tuned"]["opponents"]["random"]["paper"]
        for kind, share in kinds.items():
            assert found["action_types"][kind] == pytest.approx(share, abs=1e-6)
    base = played(result, "ipd")["base"]["opponents"]["random"]["paper"]
    after_c = sum(base["action_types"][f"{outcome}|C"] for outcome in ("C", "D", "illegal"))
    assert after_c == pytest.approx(kinds["C|C"], abs=1e-6)
    assert 0.1 < base["outcomes"]["illegal"] < 0.6
    counts = [share * 50 for share in base["outcomes"].values()]
    assert counts == pytest.approx([round(count) for count in counts], abs=1e-4)


def test_the_paper_draws_other_wordings_anew_behind_a_persona_too():
    shown = Presentation()
    seen = Seen((get_game("ipd"),), (shown.labels,), ("structured",), ("none",), ("original",))
    subject = Subject(shown, ("action3", "action4"), [get_game("ipd"), get_game("bos")], seen)
    for suite, named in conditions(["all"], subject).items():
        for name, condition in named.items():
            is_game = name.split()[0] in ("ipd", "bos")
            assert is_redrawn(suite, condition, shown) != is_game, (suite, name)


def test_xi_at_test_time():
    agent = player((1, 1))
    three = measure(agent, ["ipd"])
    changed = dataclasses.replace(agent.config.evaluation, xi=4.0)
    four = measure(
        dataclasses.replace(agent, config=dataclasses.replace(agent.config, evaluation=changed)),
        ["ipd"],
    )
    points = [exact(r, "ipd")["regret"]["deontological"]["points"] for r in (three, four)]
    assert points == pytest.approx([1.5, 2.0], abs=1e-4)
    assert (three["xi"], four["xi"]) == (3.0, 4.0)


def test_suites_have_the_conditions_of_the_paper():
    trained = Presentation()
    chosen = [GAMES[name] for name in ("ipd", "ish", "icn", "bos", "icd")]
    seen = Seen((chosen[0],), (trained.labels,), ("structured",), ("none",), ("original",))
    found = conditions(["all"], Subject(trained, ("action3", "action4"), chosen, seen))
    assert {suite: len(named) for suite, named in found.items()} == {
        "trained": 5,
        "labels": 5,
        "swapped": 5,
        "orders": 5 * 4 * 2,
        "wordings": 4,
        "unrelated": 3,
        "personas": 2 * (5 + 6),
    }
    assert found["swapped"]["ipd"].presentation.labels == ("action2", "action1")
    keys = {condition.key for named in found.values() for condition in named.values()}
    assert len(keys) == 40 + 5 + 3 + 3 + 22  # the grid holds trained and labels


def test_a_table_has_no_suites_of_words():
    with pytest.raises(UserError, match="evaluation.suites: a tabular policy has no language"):
        evaluate_agent(player((0, 1)), suites=["labels"])


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_as_cheap_as_any(seed):
    """Of all ways to put seven into three groups, padded in both of their sizes."""
    sizes = np.random.default_rng(seed).integers(1, 100, (7, 2)).tolist()
    groups = group_by_size(sizes, 3)
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert len(groups) <= 3

    def cost(groups):
        return sum(len(g) * sum(max(sizes[i][part] for i in g) for part in (0, 1)) for g in groups)

    places = itertools.product(range(3), repeat=7)
    ways = ([[i for i in range(7) if way[i] == g] for g in set(way)] for way in places)
    assert cost(groups) <= min(map(cost, ways)) / 0.81


def test_a_group_is_made_for_what_costs_much():
    """Few long prompts apart from many short ones, many rows of logits from few; likes together."""
    sizes = [(500, 5)] * 80 + [(505, 5)] * 10 + [(800, 200)] * 2 + [(600, 30)] * 8
    groups = group_by_size(sizes, 5)
    assert [len(group) for group in groups] == [90, 8, 2]
    assert group_by_size([(1, 0)] * 4, 5) == [[0, 1, 2, 3]]
