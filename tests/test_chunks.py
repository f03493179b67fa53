"""Prompt sets that are several trees, on the real model: more rounds, drawn payoffs."""

import jax
import numpy as np
import pytest

from jaxmoral.agent import Condition, Prompter, make_agent
from jaxmoral.config import parse
from jaxmoral.errors import UserError
from jaxmoral.experiment import compile_update, packed_prompts, player_games, resolve
from jaxmoral.games import get_game
from jaxmoral.prompts import Presentation, all_prompts

SOURCE = {"source": "gemma3-270m", "dtype": "float32"}


def agent_of(**env):
    config = resolve(parse({"model": SOURCE, "env": env, "lora": {"rank": 2}}))
    return config, make_agent(config)


def test_chunks_have_the_numbers_of_one_tree(real):
    """Two remembered rounds, an adapter that is not zero: one tree and several, one table."""
    config, agent = agent_of(memory=2)
    condition = Condition(player_games(config)[0][0], agent.presentation)
    whole = agent.inputs([[condition]])
    parts = Prompter(real, "plain", max_nodes=1000).inputs([[condition]])
    assert whole.tree.tokens.shape[1] == 1
    assert parts.tree.tokens.shape[1] > 1
    assert parts.tree.tokens.shape[2] <= 1000
    trainable = jax.jit(agent.policy.init)(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), trainable["adapter"]["q"]["b"].shape)
    trainable["adapter"]["q"]["b"] = 0.02 * noise

    look = jax.jit(lambda frozen, one: agent.policy.apply(frozen, one, trainable, None).log_probs)
    found = [
        np.asarray(look(agent.frozen, jax.tree.map(lambda x: x[0], inputs)))
        for inputs in (whole, parts)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)
    # Rounds further back matter to the text, so to the table.
    assert len({row.tobytes() for row in found[0]}) == 64


def test_drawn_payoffs_are_in_the_prompts_and_keep_their_shape(real):
    config, agent = agent_of(payoff_draws=2, payoff_range=(1, 12), episodes=64)
    first, later = (packed_prompts([(config, agent)], update) for update in (0, 1))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, inputs) for inputs in (first, later)]
    assert shapes[0] == shapes[1]
    for update, inputs in ((0, first), (1, later)):
        games = player_games(config, update)[0]
        assert len(games) == 2
        texts = [text for game in games for text in all_prompts(game, agent.presentation)]
        lengths, tokens = inputs.lengths[0].ravel(), inputs.tokens[0].reshape(32, -1)
        for text, ids, length in zip(texts, tokens, lengths, strict=True):
            assert real.tokenizer.decode(ids[1:length]) == text
            shown = text.splitlines()[3]
            assert shown.startswith("| action1 | ")
    assert not np.array_equal(first.tokens, later.tokens)
    state, step = compile_update([(config, agent)])
    for update in range(2):
        state, metrics = step(state, update)
    assert np.isfinite(metrics["loss"]).all()


def test_too_many_prompts_are_refused_with_three_ways_out():
    with pytest.raises(UserError, match="256 prompts.*fewer rounds.*payoff_draws.*max_prompts"):
        agent_of(memory=3, max_prompts=255)


def test_a_prompt_that_no_tree_holds_is_refused(real):
    condition = Condition(get_game("ipd"), Presentation())
    with pytest.raises(UserError, match="longer than 50 tokens"):
        Prompter(real, "plain", max_nodes=50).inputs([[condition]])
