"""Episodes in words: draws of the exact policies, and rewards by the rules themselves."""

import html
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral import play
from jaxmoral.api import train_agent
from jaxmoral.language.prompts import Condition, all_prompts
from jaxmoral.learning.agent import policy_table
from jaxmoral.measuring.runs import find_runs
from jaxmoral.measuring.transcripts import agent_side, in_words, machine_side, play_episode
from jaxmoral.reporting.series import group_runs
from jaxmoral.reporting.transcripts import transcript_blocks
from jaxmoral.world.games import get_game, mirror
from jaxmoral.world.opponents import OPPONENTS
from jaxmoral.world.rewards import get_reward, reward_table

FLAGS = ["--model.source", "tabular", "--updates", "3", "--ppo.learning_rate", "0.3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_agent(configs.load(None, FLAGS), folder, say=quiet), folder


def tables(game):
    kinds = {name: get_reward(name) for name in ("game", "deontological", "utilitarian")}
    return tuple(
        {name: reward_table(seen, reward, 3.0, -6.0) for name, reward in kinds.items()}
        for seen in (game, mirror(game))
    )


@pytest.mark.slow
def test_answers_are_draws_of_the_policy_and_rewards_follow_the_rules(trained):
    """Against a coin, in a game whose players differ; every round reckoned again by hand."""
    game = get_game("samaritans-dilemma")
    agent = trained[0].agent
    condition = Condition(game, agent.presentation)
    probs = np.exp(policy_table(agent, condition, trained[0].trainable).log_probs)
    prompts = all_prompts(game, agent.presentation)
    sides = agent_side("ours", trained[0], game), machine_side("coin", OPPONENTS["random"])
    random = np.random.default_rng(0)
    seen, answers = Counter(), Counter()
    for _ in range(300):
        episode = play_episode(sides, tables(game), num_rounds=10, random=random)
        ((own, other),) = episode["remembered"]
        for played in episode["rounds"]:
            ours, coin = played["players"]
            index = prompts.index(ours["prompt"])
            assert index // 4 == 2 * "CD".index(own) + "CD".index(other)
            shares = [ours["probabilities"][kind] for kind in ("C", "D", "illegal")]
            np.testing.assert_allclose(shares, probs[index], atol=1e-6)
            seen[index] += 1
            answers[index, ours["answer"]] += 1
            a, b = "CD".index(ours["move"]), "CD".index(coin["move"])
            expected = {
                "game": game.payoffs[0, a, b],
                "deontological": -3.0 * (a == 1 and other == "C"),
                "utilitarian": game.payoffs[:, a, b].sum(),
            }
            if ours["answer"] is None:
                assert ours["move"] == own  # the last legal move stands
                expected = dict.fromkeys(expected, -6.0)
            assert ours["rewards"] == pytest.approx(expected)
            assert coin["rewards"]["game"] == game.payoffs[1, a, b]
            assert coin["probabilities"] == {"C": 0.5, "D": 0.5}
            own, other = ours["move"], coin["move"]
    for index, count in seen.items():
        for outcome, said in enumerate([*agent.presentation.labels, None]):
            p = probs[index, outcome]
            assert abs(answers[index, said] / count - p) < 5 * np.sqrt(p * (1 - p) / count) + 1e-3


def test_tit_for_tat_repeats_what_counts(trained):
    game = get_game("ipd")
    sides = agent_side("ours", trained[0], game), machine_side("tft", OPPONENTS["tit-for-tat"])
    episode = play_episode(sides, tables(game), num_rounds=30, random=np.random.default_rng(1))
    moves = [[turn["move"] for turn in played["players"]] for played in episode["rounds"]]
    assert [their for _, their in moves] == [
        episode["remembered"][0][0],
        *(own for own, _ in moves[:-1]),
    ]
    assert "round 30" in in_words(episode)


def test_an_episode_tells_both_rewards_of_a_schedule():
    config = configs.load(
        None, ["--reward.name", "game", "--reward.then", "maximin", "--reward.xi", "4"]
    )
    told = play._tables(config, get_game("ipd"))
    assert list(told) == ["game", "deontological", "utilitarian", "maximin"]
    assert told["deontological"].min() == -6  # of illegal answers
    assert -4 in told["deontological"]


def test_the_command_writes_an_episode_a_line(trained, tmp_path, monkeypatch, capsys):
    output = tmp_path / "episodes.jsonl"
    given = ["--run", trained[1], "--against", trained[1], "--episodes", 2, "--rounds", 3]
    monkeypatch.setattr("sys.argv", ["play", *map(str, [*given, "--output", output])])
    play.main()
    said = capsys.readouterr().out
    assert said.count("round 3") == 2
    assert "    | You are in a game" in said
    episodes = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(one["rounds"]) for one in episodes] == [3, 3]
    assert all(one["game"] == "ipd" for one in episodes)
    config = trained[1] / "config.yaml"
    for wrong, message in (
        (["--against", "tft"], "did you mean 'tit-for-tat'"),
        (["--against", "."], "holds no run"),
        (["--game", "all"], "--game: all is a set of games"),
        (["--output", str(config)], f"{config} holds something else than episodes"),
        (["--seed", str(2**63)], "error: --seed: needs a whole number from 0 to 92233720368"),
        (["--rounds", "0"], "error: --rounds: needs a whole number from 1 to 1000000, got 0"),
    ):
        monkeypatch.setattr("sys.argv", ["play", "--run", str(trained[1]), *wrong])
        with pytest.raises(SystemExit):
            play.main()
        assert message in capsys.readouterr().err
    assert "seed" in config.read_text()


def test_a_report_shows_the_episodes_in_a_run_folder(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained[1], tmp_path / "run")
    given = ["--run", folder, "--episodes", 12, "--rounds", 2, "--game", "ish"]
    output = folder / "episodes-ish.jsonl"
    monkeypatch.setattr("sys.argv", ["play", *map(str, [*given, "--output", output])])
    play.main()
    (folder / "episodes-b.jsonl").write_text('{"players": ["<a>"]}\n')
    series, _ = group_runs(find_runs([folder])[0])
    text = html.unescape(transcript_blocks(series))
    assert text.count("<pre>") == 10
    assert "and 2 more in episodes-ish.jsonl" in text
    for line in output.read_text().splitlines()[:10]:
        for turn in json.loads(line)["rounds"][1]["players"][:1]:
            assert all(part in text for part in turn["prompt"].splitlines())
    assert "Left out: " in text
    assert "holds something else than episodes" in text
    (folder / "episodes-b.jsonl").write_text('{"players": ["<a>", "b"], "remembered": [["C", "D"]]')
    assert "<a>" not in transcript_blocks(series)
