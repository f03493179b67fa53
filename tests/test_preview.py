"""What a dry run shows is what the run would be, and nothing is written."""

import re

import pytest

from jaxmoral import config as configs
from jaxmoral import train
from jaxmoral.config.described import describe_keys, keys_help
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Presentation, all_prompts
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.preview import preview
from jaxmoral.reporting.catalogue import CONTRIBUTORS, LISTS, OPPONENTS, REWARDS, listing
from jaxmoral.world import crowds, games, opponents, rewards

SHOWN = Presentation(labels=("X", "Y"))


@pytest.fixture(scope="module")
def flags(shallow):
    return ["--model.source", str(shallow), "--prompt.labels", "[X,Y]", "--env.episodes", "64"]


def test_the_prompts_the_answers_and_the_untrained_policy(flags):
    config = configs.load(None, flags)
    said = "\n".join(preview(config, "CD"))
    texts = all_prompts(games.get_game("ipd"), SHOWN)
    shown = re.findall(r"prompt (\d+): after CD, order \d\n((?:    \| .*\n)+)", said)
    assert [int(number) for number, _ in shown] == [4, 5, 6, 7]
    for number, text in shown:
        lines = [line.removeprefix("    | ") for line in text.splitlines()]
        assert "\n".join(lines) == texts[int(number)]
    assert re.search(r"answer D   'Y' in \d+ ways of tokens: .*'Y'", said)
    untrained = evaluate_agent(config, ["ipd"], protocols=["exact"])
    policy = untrained["suites"]["trained"]["ipd"]["policies"]["base"]["remembered"]
    for name, shares in policy.items():
        row = rf"{name} +{shares['C']:.2%} +{shares['D']:.2%} +{shares['illegal']:.2%}"
        assert re.search(row, said), row
    assert re.search(r"time +\d+\.\d s to compile, \d+\.\d\d s an update", said)


def test_an_unknown_history_is_refused():
    config = configs.parse({"model": {"source": "tabular"}})
    with pytest.raises(UserError, match="shows first, all or one of CC, CD, DC, DD"):
        list(preview(config, "CX"))


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["train", "--dry-run", "all", "--model.source", "tabular", "--seed", "[0, 1]"]
    monkeypatch.setattr("sys.argv", given)
    train.main()
    said = capsys.readouterr().out
    assert said.startswith("population 2 members; this is seed=0")
    assert said.count("prompt ") == 16
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_training_refuses(monkeypatch, capsys):
    given = ["train", "--dry-run", "--model.source", "tabular", "--ppo.epochs", "[1, 2]"]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert "ppo.epochs: cannot vary within one population" in capsys.readouterr().err


def test_every_key_has_a_meaning():
    assert [one.key for one in describe_keys()] == configs.KEYS
    assert all(len(one.meaning) > 5 for one in describe_keys())
    told = keys_help()
    assert all(f"--{key} " in told for key in configs.KEYS)
    assert "--ppo.clip 0.2: how far" in told
    assert max(map(len, told.splitlines())) <= 100


def test_every_name_is_listed():
    names = {kind: {name.partition("(")[0] for name in lines()} for kind, lines in LISTS.items()}
    assert names["games"] == {*games.BUILT_IN, *games.FAMILIES, *games.SETS}
    plain = {name.partition("(")[0] for name in OPPONENTS}
    assert plain - {"learner"} == {*opponents.OPPONENTS, *opponents.FAMILIES}
    assert {name.partition("(")[0] for name in CONTRIBUTORS} == {*crowds.CONTRIBUTORS}
    assert {name.partition("(")[0] for name in REWARDS} == {*rewards.REWARDS, *rewards.FAMILIES}
    for kind in LISTS:
        lines = listing(kind).splitlines()
        assert len(lines) == len(LISTS[kind]())
        assert max(map(len, lines)) <= 100
    both = {"opponents": "C with that probability", "contributors": "one half by default"}
    for kind, text in both.items():
        (line,) = [line for line in listing(kind).splitlines() if line.startswith("random(0.3)")]
        assert line.endswith(text)


def test_the_flag_lists_and_ends(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--list", "rewards"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0
    assert "the smaller of a and b" in capsys.readouterr().out
