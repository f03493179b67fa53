"""PPO's parts against loops and closed forms, and its update against a slow copy."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import reference_table
from playing import play_alone
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.config import PPOConfig
from jaxmoral.language.prompt_tree import pack, stack
from jaxmoral.language.responses import index_pieces, spell
from jaxmoral.learning import ppo
from jaxmoral.learning.batches import (
    Batch,
    exact_batch,
    gae,
    make_batch,
    merge_moments,
    scale_rewards,
    split_minibatches,
    whiten,
)
from jaxmoral.learning.behaviour import sampled_shares
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts, PromptedModel
from jaxmoral.learning.losses import adapt_kl_coef, ppo_loss
from jaxmoral.learning.policy import PolicyTable
from jaxmoral.learning.state import (
    Moments,
    UpdateInputs,
    adjustable,
    init_state,
    make_optimiser,
    per_player,
)
from jaxmoral.learning.tabular_policy import TabularPolicy
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.models.lora import Lora
from jaxmoral.models.model import Decoder
from jaxmoral.world import chain, games, machines, opponents, rewards
from jaxmoral.world.memory import make_memory
from jaxmoral.world.rollout import Environment, rollout

ONE = make_memory()
TABLE = TabularPolicy(16)
NONE = jnp.zeros((1, 0))  # a table's inputs


def environment(name="game+deontological", opponent="tit-for-tat"):
    table = rewards.reward_table(games.get_game("ipd"), rewards.get_reward(name), 3.0, -6.0)
    return Environment(opponents.get_opponent(opponent), jnp.asarray(table)[None])


@pytest.mark.parametrize(("gamma", "lam"), [(0.0, 0.95), (0.9, 0.0), (0.97, 0.6), (1.0, 1.0)])
def test_gae_equals_its_definition(gamma, lam):
    generator = np.random.default_rng(0)
    rewards_, values = generator.normal(size=(2, 6, 3))
    last = generator.normal(size=3)
    expected = np.zeros((6, 3))
    for t in range(6):
        for k in range(t, 6):
            following = values[k + 1] if k < 5 else last
            delta = rewards_[k] + gamma * following - values[k]
            expected[t] += (gamma * lam) ** (k - t) * delta
    ours = gae(*map(jnp.asarray, (rewards_, values, last)), gamma, lam)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def random_batch(size=40):
    generator = np.random.default_rng(1)
    table = PolicyTable(
        jax.nn.log_softmax(jnp.asarray(generator.normal(size=(16, 3)), jnp.float32)),
        jnp.asarray(generator.normal(size=16), jnp.float32),
    )
    weights = generator.exponential(size=size)
    batch = Batch(
        *map(
            jnp.asarray,
            (
                (weights / weights.sum()).astype(np.float32),
                generator.integers(0, 16, size),
                generator.integers(0, 3, size),
                -generator.exponential(size=size).astype(np.float32),
                generator.normal(size=size).astype(np.float32),
                generator.normal(size=size).astype(np.float32),
                generator.normal(size=size).astype(np.float32),
            ),
        )
    )
    return table, batch, jax.nn.log_softmax(jnp.asarray(generator.normal(size=(16, 3))))


def loss_by_hand(table, batch, reference, kl_coef, entropy_coef, config):
    total = {"policy": 0.0, "value": 0.0, "kl": 0.0, "entropy": 0.0, "barrier": 0.0}
    for i, weight in enumerate(np.asarray(batch.weight, np.float64)):
        prompt, outcome = divmod(i, 3)
        if batch.prompt is not None:
            prompt, outcome = int(batch.prompt[i]), int(batch.outcome[i])
        row = np.asarray(table.log_probs[prompt], np.float64)
        advantage = float(batch.advantage[i])
        ratio = np.exp(row[outcome] - float(batch.log_prob[i]))
        clipped = min(max(ratio, 1 - config.clip), 1 + config.clip)
        total["policy"] -= weight * min(ratio * advantage, clipped * advantage)
        value, old = float(table.values[prompt]), float(batch.value[i])
        target = float(batch.value_target[i])
        near = old + min(max(value - old, -config.value_clip), config.value_clip)
        total["value"] += 0.5 * weight * max((value - target) ** 2, (near - target) ** 2)
        base = np.asarray(reference[prompt], np.float64)
        total["kl"] += weight * sum(np.exp(p) * (p - q) for p, q in zip(row, base, strict=True))
        total["entropy"] -= weight * sum(np.exp(p) * p for p in row)
        total["barrier"] += weight * sum(0.5 * (np.log(0.5) - p) for p in row[:2])
    return (
        total["policy"]
        + config.value_coef * total["value"]
        + kl_coef * total["kl"]
        - entropy_coef * total["entropy"]
        + config.barrier_coef * total["barrier"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("cells", [False, True])
def test_loss_equals_a_loop_and_its_gradient_a_finite_difference(cells):
    """Of samples, and of all cells of the table in its order."""
    config = PPOConfig(value_clip=0.4, barrier_coef=0.6)
    table, batch, reference = random_batch(48 if cells else 40)
    if cells:
        batch = batch._replace(prompt=None, outcome=None)
    loss = lambda table: ppo_loss(
        table, batch, reference=reference, kl_coef=0.3, entropy_coef=0.7, config=config
    )[0]
    expected = loss_by_hand(table, batch, reference, 0.3, 0.7, config)
    np.testing.assert_allclose(loss(table), expected, rtol=1e-5)

    gradient = jax.grad(loss)(table)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), table)
    moved = lambda step: jax.tree.map(lambda x, d: x + step * d, table, direction)
    ends = [loss_by_hand(moved(s), batch, reference, 0.3, 0.7, config) for s in (-1e-4, 1e-4)]
    slope = (ends[1] - ends[0]) / 2e-4
    dots = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(dots, slope, rtol=5e-3)


def test_running_moments_equal_numpy():
    generator = np.random.default_rng(0)
    batches = [3 + 5 * generator.normal(size=(4, n)) for n in (7, 50, 1)]
    moments = Moments(*jnp.zeros((3,)))
    for batch in batches:
        moments = merge_moments(moments, jnp.asarray(batch))
    everything = np.concatenate([batch.ravel() for batch in batches])
    np.testing.assert_allclose(moments.mean, everything.mean(), rtol=1e-5)
    variance = moments.deviations / moments.seen
    np.testing.assert_allclose(variance, everything.var(), rtol=1e-5)
    alike, _ = scale_rewards(jnp.full(5, 2.0), Moments(*jnp.zeros((3,))))
    np.testing.assert_array_equal(alike, 0)


@pytest.mark.parametrize(("kl", "factor"), [(0.0, 0.98), (6.0, 1.0), (6.6, 1.01), (60.0, 1.02)])
def test_kl_coefficient_follows_its_target(kl, factor):
    config = PPOConfig(kl_target=6.0, kl_gain=0.1)
    np.testing.assert_allclose(adapt_kl_coef(0.5, kl, config), 0.5 * factor, rtol=1e-6)


def test_minibatches_visit_every_sample_once_an_epoch():
    size = 24
    batch = Batch(*(jnp.arange(size) for _ in range(7)))
    config = PPOConfig(epochs=3, minibatches=4)
    split = split_minibatches(jax.random.key(0), batch, config)
    assert split.prompt.shape == (12, 6)
    epochs = np.asarray(split.prompt).reshape(3, size)
    assert not np.array_equal(epochs[0], epochs[1])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


def alone(tree):
    """The only player's slice."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def make_update(policy, config, num_updates, num_episodes=64):
    return ppo.make_update(
        Setup(
            policy,
            config,
            remembers=(1, 2, False),
            num_updates=num_updates,
            num_episodes=num_episodes,
            num_rounds=5,
        )
    )


def inputs_of(config, arena, policy=TABLE, frozen=(), prompts=NONE):
    """What an update reads of one player, the PRNG key 1 included."""
    return UpdateInputs(
        key=jax.random.key(1),
        frozen=frozen,
        prompts=jax.tree.map(lambda leaf: leaf[None], prompts),
        reference=jax.jit(reference_table, static_argnums=0)(policy, frozen, prompts)[None],
        environment=arena,
        settings=adjustable(config),
    )


def run(policy, config, arena, num_updates, frozen=(), inputs=NONE, episodes=64):
    optimiser = make_optimiser(config, num_updates)
    start = partial(init_state, optimiser=optimiser, kl_coef=config.kl_coef, num_players=1)
    state = jax.jit(start, static_argnums=1)(jax.random.key(0), policy)
    given = inputs_of(config, arena, policy, frozen, inputs)
    update = jax.jit(make_update(policy, config, num_updates, episodes))
    for _ in range(num_updates):
        state, metrics = update(state, given)
    return alone(state.players), alone(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("normalised", [False, True])
def test_update_equals_a_plain_loop(epochs, minibatches, normalised):
    """Every declared epoch and minibatch happens, in order, on the right samples."""
    config = PPOConfig(
        epochs=epochs,
        minibatches=minibatches,
        learning_rate=0.05,
        gamma=0.9,
        normalise_advantages=normalised,
        normalise_rewards=normalised,
    )
    policy, arena = TABLE, environment()
    players, metrics = run(policy, config, arena, 1)
    assert metrics["kl_coef"] == pytest.approx(config.kl_coef)  # that of the loss, not the next
    assert players.kl_coef == pytest.approx(config.kl_coef * 0.98)

    optimiser = make_optimiser(config, 1)
    trainable = policy.init(jax.random.key(0))
    opt_state = optimiser.init(trainable)
    table = policy.bind((), NONE).table(trainable)
    rollout_key, order_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)
    played = play_alone(rollout_key, table.log_probs, arena, ONE, 64, 5)
    reward = np.asarray(played.reward)
    if normalised:
        reward = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
    batch = make_batch(table, played, jnp.asarray(reward), config)
    if normalised:
        np.testing.assert_allclose(batch.advantage.std(ddof=1), 1, rtol=1e-3)
    batches = split_minibatches(jax.random.split(order_key, 1)[0], batch, config)
    for index in range(epochs * minibatches):
        minibatch = jax.tree.map(lambda field, index=index: field[index], batches)

        def loss(trainable, minibatch=minibatch):
            table = policy.bind((), NONE).table(trainable)
            reference = reference_table(policy, (), NONE)
            return ppo_loss(
                table,
                minibatch,
                reference=reference,
                kl_coef=config.kl_coef,
                entropy_coef=1.0,
                config=config,
            )[0]

        gradient = jax.grad(loss)(trainable)
        step, opt_state = optimiser.update(gradient, opt_state, trainable)
        trainable = optax.apply_updates(trainable, step)
    chex.assert_trees_all_close(players.trainable, trainable, atol=2e-6, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["epochs", "once"])
def test_two_learners_are_two_plain_loops(level):
    """Each player's parameters follow its own loss on its own side of the same episodes."""
    config = PPOConfig(learning_rate=0.05, epochs=3 if level == "epochs" else 1, gamma=0.9)
    policy, optimiser = TABLE, make_optimiser(config, 1)
    tables = [
        rewards.add_illegal_opponent(
            rewards.reward_table(game, rewards.get_reward("game"), 3.0, -6.0),
            "last-move",
            "game",
            -6.0,
        )
        for game in (games.get_game("bos"), games.mirror(games.get_game("bos")))
    ]
    arena = Environment(None, jnp.asarray(np.stack(tables))[:, None])
    state = init_state(
        jax.random.key(0), policy, optimiser=optimiser, kl_coef=config.kl_coef, num_players=2
    )
    noise = lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape)
    before = jax.tree.map(noise, state.players.trainable)
    reference = jnp.stack([reference_table(policy, (), NONE)] * 2)
    update = jax.jit(make_update(policy, config, 1))
    both = inputs_of(config, arena)._replace(prompts=jnp.stack([NONE, NONE]), reference=reference)
    after, metrics = update(state._replace(players=state.players._replace(trainable=before)), both)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)
    log_probs = jax.nn.log_softmax(before["logits"])
    both = rollout(keys[0], log_probs, arena, memory=ONE, num_episodes=64, num_rounds=5)
    for player in (0, 1):
        trainable = jax.tree.map(lambda x, at=player: x[at], before)
        played = jax.tree.map(lambda x, at=player: x[at], both)
        opt_state = optimiser.init(trainable)
        table = policy.bind((), NONE).table(trainable)
        batch = make_batch(table, played, played.reward, config)
        for _ in range(config.epochs):

            def loss(trainable, batch=batch):
                table = policy.bind((), NONE).table(trainable)
                return ppo_loss(
                    table,
                    batch,
                    reference=reference[0],
                    kl_coef=config.kl_coef,
                    entropy_coef=1.0,
                    config=config,
                )[0]

            gradient = jax.grad(loss)(trainable)
            step, opt_state = optimiser.update(gradient, opt_state, trainable)
            trainable = optax.apply_updates(trainable, step)
        for name, expected in trainable.items():
            np.testing.assert_allclose(after.players.trainable[name][player], expected, atol=2e-6)
        np.testing.assert_allclose(metrics["reward_mean"][player], played.reward.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("learners", [1, 2, "one, two machines"])
def test_the_exact_batch_of_two_games_is_the_mean_of_sampled_ones(learners):
    """Weights, advantages, shares and rewards, against 200,000 episodes."""
    memory, noise = make_memory(2, 2, blank=True), 0.1
    config = PPOConfig(gamma=0.9, gae_lambda=0.6)
    keys = jax.random.split(jax.random.key(0), 3)
    num_prompts = 2 * 4 * len(memory.histories)
    log_probs = jax.nn.log_softmax(jax.random.normal(keys[0], (2, num_prompts, 3)))
    table = PolicyTable(log_probs[0], jax.random.normal(keys[1], (num_prompts,)))
    tables = [
        rewards.reward_table(games.get_game(name), rewards.game_payoff, 3.0, -6.0)
        for name in ("ipd", "bos")
    ]
    if learners != 2:
        machine = opponents.get_opponent("joss")
        if learners != 1:
            machine = machines.stack([machine, opponents.get_opponent("prober")])
        arena = Environment(machine, np.stack(tables), noise)
        played = play_alone(keys[2], log_probs[0], arena, memory, 200_000, 4)
        others, points = None, arena.rewards
    else:
        tables = [rewards.add_illegal_opponent(one, "zero", "game", -6.0) for one in tables]
        arena = Environment(None, np.stack([tables] * 2), noise)
        sizes = {"num_episodes": 200_000, "num_rounds": 4}
        both = rollout(keys[2], log_probs, arena, memory=memory, **sizes)
        played, others, points = alone(both), log_probs[1], arena.rewards[0]
    batch = make_batch(table, played, played.reward, config)
    exact, shares, reward = exact_batch(
        table,
        arena._replace(rewards=points),
        others_log_probs=others,
        memory=memory,
        num_rounds=4,
        config=config,
    )

    cell = np.asarray(batch.prompt * 3 + batch.outcome)
    count = lambda values: np.bincount(cell, values, minlength=3 * num_prompts)
    seen, sums, squares = (count(np.asarray(batch.advantage, float) ** n) for n in (0, 1, 2))
    assert exact.prompt is exact.outcome is None  # the table's cells in its order
    weight = np.asarray(exact.weight, float)
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
    assert (abs(seen / len(cell) - weight) < 5 * 2 * np.sqrt(weight / len(cell)) + 1e-6).all()
    often = seen > 200
    assert weight[often].sum() > 0.98
    mean = sums[often] / seen[often]
    error = np.sqrt((squares[often] / seen[often] - mean**2) / seen[often])
    assert (abs(mean - np.asarray(exact.advantage)[often]) < 5 * error + 1e-3).all()
    values = jnp.repeat(table.values, 3)
    np.testing.assert_allclose(exact.value_target - exact.advantage, values, atol=1e-5)
    np.testing.assert_allclose(exact.log_prob, log_probs[0].ravel(), atol=1e-6)
    sampled = sampled_shares(played, memory)
    np.testing.assert_allclose(shares.sum(-1), sampled, atol=5 * 0.5 / np.sqrt(200_000))
    np.testing.assert_allclose(reward, played.reward.mean(), atol=5 * 5 / np.sqrt(200_000))


def test_two_gemmas_are_two_gemmas(tiny):
    """Stacked players run through the model one after the other, each with its own adapter."""
    policy, weights, inputs = tiny_policy(tiny)
    keys = jax.random.split(jax.random.key(0), 2)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    players = [jax.tree.map(noise, policy.init(keys[0])), policy.init(keys[1])]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    one = jax.jit(lambda inputs, p: policy.bind(weights, inputs).table(p))
    two = jax.jit(lambda inputs, p: per_player(one, inputs, p))
    together = two(stack([inputs, inputs]), stack(players))
    for player, alone_ in enumerate(players):
        expected = one(inputs, alone_)
        np.testing.assert_allclose(together.log_probs[player], expected.log_probs, atol=1e-5)
        np.testing.assert_allclose(together.values[player], expected.values, atol=1e-5)
    assert float(jnp.abs(together.log_probs[0] - together.log_probs[1]).max()) > 0.01


def tiny_policy(tiny, dropout=0.0, letters=26, chunks=1):
    config, definition, weights, _ = tiny
    pieces = [None, None] + [bytes([97 + i % letters]) for i in range(config.vocab_size - 2)]
    responses = spell([b"ab", b"cd"], index_pieces(pieces), [1], 2)
    lora = Lora(2, 4.0, dropout, ("q", "o", "down"))
    policy = LanguagePolicy(config, definition, lora)
    prompts = [[0, 9, 8, 7, 10 + i, 20 + i % 3] for i in range(16)]
    each, packed = 16 // chunks, []
    for start in range(0, 16, each):
        some = prompts[start : start + each]
        tree, last = pack([[*prompt, *prefix] for prompt in some for prefix in responses.prefixes])
        tokens, lengths = np.array(some, np.int32), np.full(each, 6, np.int32)
        nodes = last.reshape(each, -1)
        packed.append((tree, PackedPrompts(tree, nodes, responses.trie, tokens, lengths)))
    tree = stack([tree for tree, _ in packed])
    inputs = [inputs._replace(tree=()) for _, inputs in packed]
    inputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)
    return policy, weights, inputs._replace(tree=jax.tree.map(jnp.asarray, tree))


def test_the_table_without_logits_equals_the_one_with(tiny):
    """In several pieces of the vocabulary, with and without a cap on logits; gradients too."""
    policy, weights, inputs = tiny_policy(tiny, chunks=2)
    capped = dataclasses.replace(policy.config, final_softcap=2.0)
    definition, _ = Decoder.abstract(capped)
    trainable = policy.init(jax.random.key(1))
    trainable = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), trainable
    )
    signs = jax.random.normal(jax.random.key(2), (16, 3))
    for each in (policy, dataclasses.replace(policy, config=capped, definition=definition)):
        small = dataclasses.replace(each, max_logits=8 * inputs.nodes.shape[-1] * 10)

        def from_table(trainable, small=small):
            return jnp.sum(signs * small.bind(weights, inputs).table(trainable).log_probs)

        def from_logits(trainable, each=each):
            table, _ = each.bind(weights, inputs).table_and_logits(trainable)
            return jnp.sum(signs * table.log_probs)

        both = [jax.jit(jax.value_and_grad(total)) for total in (from_table, from_logits)]
        for one, other in zip(*(jax.tree.leaves(f(trainable)) for f in both), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_prompts_in_several_trees_are_the_same_prompts(tiny):
    """Tables, gradients and scores of sampled answers do not know how prompts are packed."""
    policy, weights, whole = tiny_policy(tiny)
    _, _, parts = tiny_policy(tiny, chunks=4)
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    trainable = jax.tree.map(noise, policy.init(jax.random.key(0)))
    prompt, tokens = jnp.arange(16), jnp.arange(32).reshape(16, 2)

    @jax.jit
    def look(inputs):
        table = lambda p: policy.bind(weights, inputs).table(p)
        total = lambda p: jnp.sum(table(p).log_probs ** 2) + jnp.sum(table(p).values ** 2)
        scores = policy.bind(weights, inputs).score(trainable, prompt=prompt, tokens=tokens)
        return table(trainable), jax.grad(total)(trainable), scores

    for ours, theirs in zip(*map(jax.tree.leaves, map(look, (whole, parts))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sharing_the_forward_pass_changes_nothing(tiny):
    """With one step the gradient is taken at the behaviour policy, so both ways must agree."""
    policy, weights, inputs = tiny_policy(tiny)
    config = PPOConfig(learning_rate=0.01)
    shared, _ = run(policy, config, environment(), 1, weights, inputs)

    class Separate(LanguagePolicy):
        dropout = True

        def bind(self, frozen, prompts):
            return Keyless(super().bind(frozen, prompts))

    @dataclasses.dataclass
    class Keyless:
        bound: PromptedModel

        def table(self, trainable, dropout_key=None):
            return self.bound.table(trainable)

    fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    apart, _ = run(Separate(**fields), config, environment(), 1, weights, inputs)
    chex.assert_trees_all_close(shared.trainable, apart.trainable, atol=1e-5, rtol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_value_head_and_every_adapter_matrix_train(tiny, dropout):
    policy, weights, inputs = tiny_policy(tiny, dropout)
    config = PPOConfig(learning_rate=0.01, epochs=2)
    players, metrics = run(policy, config, environment(), 2, weights, inputs)
    before = policy.init(jax.random.key(0))
    changed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), players.trainable, before)
    assert min(jax.tree.leaves(changed)) > 1e-4, changed
    assert np.isfinite(metrics["loss"])


def test_gemma_gradient_equals_a_finite_difference(tiny):
    """Through the whole chain: LoRA, tree, response distribution, value head, PPO loss."""
    policy, weights, inputs = tiny_policy(tiny)
    _, batch, reference = random_batch()
    trainable = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
        policy.init(jax.random.key(0)),
    )

    @jax.jit
    def loss(trainable):
        table = policy.bind(weights, inputs).table(trainable)
        return ppo_loss(
            table,
            batch,
            reference=reference,
            kl_coef=0.3,
            entropy_coef=0.7,
            config=PPOConfig(clip=5.0),
        )[0]

    gradient = jax.jit(jax.grad(loss))(trainable)
    for name in ("adapter", "value_head"):
        direction = jax.tree.map(jnp.zeros_like, trainable)
        direction[name] = gradient[name]
        norm = float(optax.global_norm(direction))
        moved = lambda step, d=direction, n=norm: jax.tree.map(
            lambda x, y: x + step * y / n, trainable, d
        )
        slope = (loss(moved(2e-3)) - loss(moved(-2e-3))) / 4e-3
        np.testing.assert_allclose(norm, slope, rtol=2e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_key_is_used_twice(tiny, dropout):
    policy, weights, inputs = tiny_policy(tiny, dropout)
    config = PPOConfig(epochs=2, minibatches=2)
    with jax.debug_key_reuse(True):
        run(policy, config, environment(), 1, weights, inputs)


def test_updates_play_different_episodes():
    config = PPOConfig(learning_rate=1e-9)
    optimiser = make_optimiser(config, 4)
    update = jax.jit(make_update(TABLE, config, 4))
    state = init_state(
        jax.random.key(0), TABLE, optimiser=optimiser, kl_coef=config.kl_coef, num_players=1
    )
    given = inputs_of(config, environment())
    means = []
    for _ in range(4):
        state, metrics = update(state, given)
        means.append(float(metrics["reward_mean"][0]))
    assert len(set(means)) == 4


OPTIMA = {
    "game": [1, 1, 1, 1],
    "utilitarian": [0, 0, 0, 0],
    "deontological": [0, None, 0, None],
    "game+deontological": [0, 1, 0, 1],
}


@pytest.mark.parametrize("name", OPTIMA)
def test_a_table_learns_the_one_step_optimum(name):
    config = PPOConfig(learning_rate=0.3)
    players, metrics = run(TABLE, config, environment(name), 40, episodes=2048)
    log_probs = TABLE.bind((), NONE).table(players.trainable).log_probs
    policy = np.asarray(chain.memory_policy(log_probs))
    assert policy[:, 2].max() < 0.02
    for row, best in zip(policy, OPTIMA[name], strict=True):
        assert best is None or row[best] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_the_discount_makes_a_farsighted_agent(estimator):
    """Against tit-for-tat, D is the bandit's choice and C the far-sighted one (3 > (4 + 1) / 2)."""
    log_probs = {}
    for gamma in (0.0, 0.95):
        config = PPOConfig(
            learning_rate=0.1, gamma=gamma, entropy_coef=0.1, kl_coef=0.0, estimator=estimator
        )
        players, _ = run(TABLE, config, environment("game"), 150, episodes=2048)
        table = TABLE.bind((), NONE).table(players.trainable)
        log_probs[gamma] = np.asarray(chain.memory_policy(table.log_probs))
    assert log_probs[0.0][0, 1] > 0.9
    assert log_probs[0.95][0, 0] > 0.9


def test_what_was_unlearned_is_learned_again_behind_a_barrier():
    """After a selfish phase that leaves almost no C, too little for a table without one."""
    flags = ["--model.source", "tabular", "--ppo.estimator", "exact", "--ppo.learning_rate", "0.3"]
    flags += ["--reward.name", "game", "--reward.then", "utilitarian", "--reward.switch_at", "100"]
    flags += ["--ppo.entropy_coef", "0", "--ppo.final_entropy_coef", "0", "--updates", "150"]
    flags += ["--ppo.barrier_coef", "[0, 0.02]"]
    members = fit_population(configs.load_members(None, flags), say=quiet)
    without, behind = (member.history for member in members.values())
    assert max(without[99]["p_cooperate"], behind[99]["p_cooperate"]) < 0.02
    assert without[-1]["p_cooperate"] < 0.02
    assert behind[-1]["p_cooperate"] > 0.99


def test_schedules_end_where_they_should():
    for kind, last in (("constant", 0.1), ("linear", 0.0), ("cosine", 0.0)):
        config = PPOConfig(learning_rate=0.1, learning_rate_schedule=kind, epochs=2)
        optimiser = make_optimiser(config, 10)
        state = optimiser.init(jnp.ones(()))
        sizes = []
        for _ in range(21):
            step, state = optimiser.update(jnp.ones(()), state)
            sizes.append(-float(step))
        np.testing.assert_allclose(sizes[0], 0.1, rtol=1e-3)
        np.testing.assert_allclose(sizes[20], last, atol=1e-6)


ALONE = ["--model.source", "tabular", "--updates", "3", "--env.rounds", "1"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--env.episodes", "1"],
        ["--env.episodes", "1", "--ppo.level", "token"],
        ["--env.episodes", "2", "--ppo.minibatches", "2"],
        ["--env.episodes", "1", "--env.opponent", "learner"],
        ["--env.episodes", "1", "--ppo.estimator", "exact", "--ppo.normalise_rewards", "false"],
    ],
)
def test_a_sample_alone_teaches_nothing_and_breaks_nothing(flags):
    """It is its own mean: normalised, advantages and first rewards are 0."""
    normal = ["--ppo.normalise_advantages", "true", "--ppo.normalise_rewards", "true"]
    config = configs.load(None, [*ALONE, *normal, *flags])
    history = fit_agent(config, say=quiet).history
    assert len(history) == 3
    assert all(np.isfinite(record["loss"]) for record in history)
    np.testing.assert_array_equal(whiten(jnp.array([[3.0]])), [[0.0]])
    some = jax.random.normal(jax.random.key(0), (5, 7))
    expected = (some - some.mean()) / np.sqrt(np.var(some, ddof=1) + 1e-8)
    np.testing.assert_allclose(whiten(some), expected, rtol=1e-5)
