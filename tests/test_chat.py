"""Playing and questioning an agent in the terminal."""

import re

import numpy as np
import pytest
from processes import command
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.chat import Match
from jaxmoral.learning.training import fit_agent
from jaxmoral.world.memory import make_memory

FLAGS = ["--model.source", "tabular", "--env.episodes", "256", "--updates", "150"]
FLAGS += ["--ppo.learning_rate", "0.3", "--reward.name", "game+deontological"]
FLAGS += ["--ppo.final_entropy_coef", "0.01", "--ppo.kl_coef", "0"]


def talk(folder, lines):
    return command("chat", "--run", folder, text="\n".join(lines) + "\n")


def test_a_match_follows_the_rules_of_training():
    """An agent that repeats the user's last move, and one that answers nothing legal."""
    log_probs = np.full((16, 3), -50.0)
    for prompt in range(16):
        log_probs[prompt, (prompt // 4) % 2] = 0.0
    match = Match(configs.Config(), make_memory(), log_probs, 0)
    ((_, previous),) = match.history
    for move in (0, 1, 1, 0, 1):
        played = match.play(move)
        assert played.agents_move == previous
        assert played.agents_points == match.game.payoffs[0, previous, move]
        assert played.users_points == match.game.payoffs[1, previous, move]
        previous = move

    silent = np.full((16, 3), -50.0)
    silent[:, 2] = 0.0
    match = Match(configs.Config(), make_memory(), silent, 0)
    ((before, _),) = match.history
    played = match.play(1)
    assert (played.agents_move, played.agents_points) == (2, -6.0)
    assert played.users_points == match.game.payoffs[1, before, 1]
    assert played.probabilities[2] == pytest.approx(1.0)
    assert match.history == ((before, 1),)


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("memory", [0, 2, 3])
def test_a_match_remembers_as_long_as_the_agent(memory, blank):
    """The prompt it is asked with shows the newest rounds, and it answers that prompt."""
    machine = make_memory(memory, 2, blank)
    logits = np.random.default_rng(0).integers(0, 3, 4 * len(machine.histories))
    match = Match(configs.Config(), machine, np.log(np.eye(3)[logits] + 1e-30), 0)
    rounds = list(match.history)
    assert len(rounds) == (0 if blank else memory)
    for move in (0, 1, 1, 0, 1):
        played = match.play(move)
        assert machine.histories[played.prompt // 4] == tuple(rounds)
        assert played.agents_move == logits[played.prompt]
        if memory:
            own = (0, 1, rounds[-1][0] if rounds else 0)[played.agents_move]
            rounds = [*rounds, (own, move)][-memory:]
        assert match.history == tuple(rounds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    fit_agent(configs.load(None, FLAGS), path, say=quiet)
    return path


@pytest.mark.slow
def test_a_trained_agent_reciprocates_in_the_terminal(folder):
    done = talk(folder, ["why?", "d", "D", "c", "c", "hello", "prompt", "quit"])
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if "agent: " in line]
    assert [answer.split()[2] for answer in answers][1:] == ["action2.", "action2.", "action1."]
    assert "Play a round first." in done.stdout
    assert "Type action1, action2, c, d, strategy, why, prompt or quit." in done.stdout
    assert "You are in a game with another player" in done.stdout
    shares = [re.findall(r"(\d+\.\d)%", answer) for answer in answers]
    assert all(sum(map(float, found)) == pytest.approx(100, abs=0.2) for found in shares)
    assert all(float(found[1]) > 90 for found in shares[1:3])  # D after D


def test_a_table_has_no_words(folder):
    done = talk(folder, ["c", "why"])
    assert done.returncode == 0
    assert "This agent is a table of probabilities; it has no words." in done.stdout
