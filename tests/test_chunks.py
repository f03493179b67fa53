"""Prompt sets that are several trees: more rounds, drawn payoffs, the real tokenizer."""

import itertools

import jax
import numpy as np
import pytest

from jaxmoral.config import parse
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition, Presentation, all_prompts
from jaxmoral.learning.agent import drawable_points, make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.met import Met
from jaxmoral.learning.mixture import player_games
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.world.games import corner_payoffs, get_game


def agent_of(folder, **env):
    tree = {"model": {"source": str(folder)}, "prompt": {"labels": ["X", "Y"]}}
    config = resolve(parse(tree | {"env": env, "lora": {"rank": 2}}))
    return config, make_agent(config)


def test_chunks_have_the_numbers_of_one_tree(shallow):
    """Two remembered rounds, an adapter that is not zero: one tree and several, one table."""
    config, agent = agent_of(shallow, memory=2)
    condition = Condition(player_games(config)[0][0], agent.presentation)
    whole = agent.prompter.pack([[condition]])
    parts = Prompter(agent.model, "plain", max_nodes=1000).pack([[condition]])
    assert whole.tree.tokens.shape[1] == 1
    assert parts.tree.tokens.shape[1] > 1
    assert parts.tree.tokens.shape[2] <= 1000
    trainable = jax.jit(agent.policy.init)(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), trainable["adapter"]["q"]["b"].shape)
    trainable["adapter"]["q"]["b"] = 0.3 * noise

    look = jax.jit(lambda frozen, one: agent.policy.bind(frozen, one).table(trainable).log_probs)
    found = [
        np.asarray(look(agent.frozen, jax.tree.map(lambda x: x[0], inputs)))
        for inputs in (whole, parts)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)
    # Rounds further back matter to the text, so to the table.
    assert len({row.tobytes() for row in found[0]}) == 64


def test_drawn_payoffs_are_in_the_prompts_and_keep_their_shape(shallow):
    config, agent = agent_of(shallow, payoff_draws=2, payoff_range=(1, 12), episodes=64)
    members = [(config, agent)]
    conditions = Conditions(members, Met(members))
    first, later = (conditions.prompts(conditions.shown(update)) for update in (0, 1))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, inputs) for inputs in (first, later)]
    assert shapes[0] == shapes[1]
    for update, inputs in ((0, first), (1, later)):
        games = player_games(config, update)[0]
        assert len(games) == 2
        texts = [text for game in games for text in all_prompts(game, agent.presentation)]
        lengths, tokens = inputs.lengths[0].ravel(), inputs.tokens[0].reshape(32, -1)
        for text, ids, length in zip(texts, tokens, lengths, strict=True):
            assert agent.model.tokenizer.decode(ids[1:length]) == text
            shown = text.splitlines()[3]
            assert shown.startswith("| X | ")
    assert not np.array_equal(first.tokens, later.tokens)
    state, step = compile_update([(config, agent)])
    for update in range(2):
        state, metrics = step(state, update)
    assert np.isfinite(metrics["loss"]).all()


def test_too_many_prompts_are_refused_with_three_ways_out(shallow):
    with pytest.raises(UserError, match="256 prompts.*fewer rounds.*payoff_draws.*max_prompts"):
        agent_of(shallow, memory=3, max_prompts=255)


def test_a_prompt_that_no_tree_holds_is_refused(real):
    condition = Condition(get_game("ipd"), Presentation())
    with pytest.raises(UserError, match="longer than 50 tokens"):
        Prompter(real, "plain", max_nodes=50).pack([[condition]])


POINTS_FIRST = """Points {cc_own}/{cc_other}, {cd_own}/{cd_other}, {dc_own}:{dc_other}, {dd_own}.
{when} it was {own_points} for you and ({other_points}) for A: you chose {own}, A {other}.
Choose {choices}, {opening}. Answer:"""
RANGES = [(-5, 10), (-9, 12), (1, 9), (-99, 120)]
DRAWN = [
    *itertools.product(["ipd"], ["structured", POINTS_FIRST], RANGES),
    *itertools.product(["bos"], [POINTS_FIRST], RANGES[:2]),
    ("ipd", "unstructured", (-12, -3)),
    ("ipd", "action", (-9, 12)),  # which shows no number, in one short tree
]


@pytest.mark.parametrize(("game", "wording", "payoff_range"), DRAWN)
def test_all_payoffs_of_a_range_have_one_shape(real, game, wording, payoff_range):
    """Updates with the real tokenizer, and the shortest and the longest numbers."""
    env = {"payoff_draws": 1, "payoff_range": payoff_range, "game": game, "episodes": 64}
    config = parse({"env": env})
    shown = Presentation(wording)
    prompter = Prompter(real, "plain")
    drawn = [player_games(config, update)[0][0] for update in range(4)]
    drawn += corner_payoffs(get_game(game), *payoff_range)[::4]
    room = prompter.room([Condition(get_game(game), shown)], drawable_points(config))
    found = []
    for played in drawn:
        inputs = prompter.pack([[Condition(played, shown)]], room)
        found.append(jax.tree.map(np.shape, inputs))
    assert all(shapes == found[0] for shapes in found)
    assert inputs.tree.tokens.shape[:2] == (1, 1)
    texts, ids = all_prompts(drawn[-1], shown), inputs.tokens[0, 0]
    for text, tokens, length in zip(texts, ids, inputs.lengths[0, 0], strict=True):
        assert real.tokenizer.decode(tokens[1:length]) == text


def test_means_of_several_others_have_room_too(real):
    """Of drawn whole points they are fractions."""
    wording = "{when} the {num_others} got {other_points}, {others_c} chose {c}. Choose {choices}:"
    env = {"game": "threshold-goods(4,2)", "payoff_draws": 3, "payoff_range": (-20, 9)}
    config = parse({"env": env | {"episodes": 63}})
    prompter, shown = Prompter(real, "plain"), Presentation(wording)
    groups = [
        [Condition(game, shown) for game in player_games(config, update)[0]] for update in range(5)
    ]
    assert any("." in text.split(",")[0] for text in all_prompts(*groups[0][0]))
    room = prompter.room(groups[0], drawable_points(config))
    found = [jax.tree.map(np.shape, prompter.pack([group], room)) for group in groups]
    assert all(shapes == found[0] for shapes in found)


def test_room_for_other_payoffs_changes_no_number(shallow):
    """A tiny model with a noisy adapter: padded for what may be drawn, and not."""
    env = {"payoff_draws": 2, "payoff_range": (-99, 120), "episodes": 64}
    tree = {"model": {"source": str(shallow)}, "prompt": {"labels": ["X", "Y"]}, "env": env}
    config = resolve(parse(tree))
    agent = make_agent(config)
    group = [Condition(game, agent.presentation) for game in player_games(config)[0]]
    roomy = agent.prompter.pack([group], agent.prompter.room(group, drawable_points(config)))
    tight = agent.prompter.pack([group])
    assert roomy.tree.tokens.size > tight.tree.tokens.size
    trainable = jax.jit(agent.policy.init)(jax.random.key(0))
    trainable = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), trainable
    )
    look = jax.jit(lambda frozen, one: agent.policy.bind(frozen, one).table(trainable))
    found = [look(agent.frozen, jax.tree.map(lambda x: x[0], inputs)) for inputs in (roomy, tight)]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(np.asarray(found[0].values)) > 0.01
