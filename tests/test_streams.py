"""The paper's streams against plain numpy calls in the order its code makes them."""

import jax
import numpy as np
import pytest
from playing import play_alone

from jaxmoral import config as configs
from jaxmoral.learning.draws import paper_draws
from jaxmoral.world import games, opponents, rewards
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rollout import Environment, rollout
from jaxmoral.world.streams import Streams


def by_hand(seed, num_episodes, num_rounds, players, opponent):
    """Symbols, as the paper's code draws them."""
    children = [np.random.default_rng(c) for c in np.random.SeedSequence(seed).spawn(6)]
    memories, orders, moves = [], [], []
    for _ in range(num_episodes):
        memory = ["CD"[children[2].choice([0, 1], 1).item()]]
        fixed = {"always-cooperate": "C", "always-defect": "D"}.get(opponent)
        memory.append(fixed or "CD"[children[2].choice([0, 1], 1).item()])
        memories.append(memory)
        for _ in range(num_rounds):
            for _ in range(players):
                opening, reply = ["C", "D"], ["C", "D"]
                children[3].shuffle(opening)
                children[4].shuffle(reply)
                orders.append((opening[0], reply[0]))
            if opponent == "random":
                moves.append(children[5].choice(["C", "D"], 1).item())
    return memories, orders, moves


@pytest.mark.parametrize("opponent", ["random", "always-defect", "tit-for-tat"])
def test_draws_equal_plain_numpy(opponent):
    fixed = {"always-cooperate": 0, "always-defect": 1}.get(opponent)
    draws = Streams(3).draw(4, 5, remembered=fixed, coin=opponent == "random")
    memories, orders, moves = by_hand(3, 4, 5, 1, opponent)
    assert [["CD"[a], "CD"[b]] for a, b in zip(draws.own, draws.other, strict=True)] == memories
    ours = [("CD"[o // 2], "CD"[o % 2]) for o in draws.order[0].T.ravel()]
    assert ours == orders
    if opponent == "random":
        assert ["CD"[c] for c in draws.coin.T.ravel()] == moves


@pytest.mark.parametrize("opponent", ["random", "always-cooperate", "always-defect"])
def test_a_run_draws_for_its_opponent(opponent):
    """The second update's numbers, though the first was made by an earlier session."""
    flags = ["--model.source", "tabular", "--env.streams", "numpy", "--env.opponent", opponent]
    config = configs.load(None, [*flags, "--env.episodes", "4", "--env.rounds", "5", "--seed", "3"])
    draws = paper_draws(config)(1)
    memories, _, moves = by_hand(3, 8, 5, 1, opponent)
    assert [["CD"[a], "CD"[b]] for a, b in zip(draws.own, draws.other, strict=True)] == memories[4:]
    if opponent == "random":
        assert ["CD"[c] for c in draws.coin.T.ravel()] == moves[20:]


def test_two_players_draw_in_turn_and_streams_go_on():
    streams = Streams(7)
    parts = [streams.draw(1, 3, num_players=2, coin=False) for _ in range(2)]
    memories, orders, _ = by_hand(7, 2, 3, 2, "learner")
    assert [["CD"[p.own[0]], "CD"[p.other[0]]] for p in parts] == memories
    ours = [o for p in parts for o in np.moveaxis(p.order, 0, 1)[..., 0].ravel()]
    assert [("CD"[o // 2], "CD"[o % 2]) for o in ours] == orders


def test_the_papers_ppo_seeds():
    """The children are spawned as there: the second one gives the seeds of its six runs."""
    seeds = [
        np.random.default_rng(np.random.SeedSequence(run).spawn(6)[1]).integers(0, 10_000).item()
        for run in range(1, 7)
    ]
    assert seeds == [9411, 8993, 7120, 9402, 5384, 3409]


@pytest.mark.slow
def test_rollouts_follow_the_draws():
    draws, memory, key = Streams(1).draw(50, 5), make_memory(), jax.random.key(1)
    table = rewards.reward_table(games.get_game("ipd"), rewards.get_reward("game"), 3.0, -6.0)
    arena = Environment(opponents.get_opponent("random"), table[None])
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (16, 3)))
    played = jax.device_get(play_alone(key, log_probs, arena, memory, 50, 5, draws))
    np.testing.assert_array_equal(played.other_action, draws.coin)
    np.testing.assert_array_equal(played.prompt % 4, draws.order[0])
    np.testing.assert_array_equal(played.prompt[0] // 4, draws.own * 2 + draws.other)
    np.testing.assert_array_equal((played.prompt[1:] // 4) % 2, draws.coin[:-1])
    # Tit-for-tat takes nothing from the coin.
    mirror = Environment(opponents.get_opponent("tit-for-tat"), table[None])
    played = jax.device_get(play_alone(key, log_probs, mirror, memory, 50, 5, draws))
    np.testing.assert_array_equal(played.other_action, played.prompt // 8)

    draws = Streams(1).draw(20, 3, num_players=2)
    pair = np.stack([rewards.add_illegal_opponent(table, "last-move", "game", -6.0)[None]] * 2)
    arena, log_probs = Environment(None, pair), np.stack([log_probs] * 2)
    both = jax.device_get(
        rollout(key, log_probs, arena, memory=memory, num_episodes=20, num_rounds=3, draws=draws)
    )
    np.testing.assert_array_equal(both.prompt % 4, draws.order)
    np.testing.assert_array_equal(both.prompt[0, 0] // 4, draws.own * 2 + draws.other)
    np.testing.assert_array_equal(both.prompt[1, 0] // 4, draws.other * 2 + draws.own)
