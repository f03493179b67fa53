"""Token-level PPO against torch, PEFT and the formulas of arXiv 2410.01639's TRL in float64."""

import copy
import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from playing import play_alone
from test_ppo import NONE, ONE, TABLE, alone, environment, inputs_of, tiny_policy
from test_responses import PIECES, STOP

from jaxmoral import config as configs
from jaxmoral.language.responses import index_pieces, outcome_log_probs, sample_answer, spell
from jaxmoral.learning import ppo
from jaxmoral.learning.batches import make_token_batch, token_rewards
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.losses import exact_entropy
from jaxmoral.learning.state import init_state, make_optimiser
from jaxmoral.models.peft import save_peft
from jaxmoral.models.tensor_names import LINEAR_NAMES

PAPER = configs.load(None, ["--preset", "paper", "--ppo.learning_rate", "1e-3"]).ppo


@pytest.mark.parametrize("budget", [2, 3])
def test_answers_given_their_outcome_are_plain_samples(budget):
    """Outcome first, then its tokens: every sequence as often as its product of probabilities."""
    responses = spell([b"ab1", b"ab2"], index_pieces(PIECES), [STOP], budget, max_prefixes=1000)
    size, count = len(PIECES), 200_000
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, len(responses.prefixes), size)))
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)[0]
    outcome_key, key = jax.random.split(jax.random.key(0))
    outcome = jax.random.categorical(
        outcome_key, outcome_log_probs(logits, responses.trie)[0], shape=(count,)
    )
    prompt = jnp.zeros(count, jnp.int32)
    tokens, known = jax.jit(sample_answer)(key, logits, responses.trie, prompt, outcome)
    rows = zip(np.asarray(tokens).tolist(), np.asarray(known).tolist(), strict=True)
    decided = Counter(tuple(row[:n]) for row, n in rows)
    total = 0.0
    for index, prefix in enumerate(responses.prefixes):
        inner = [responses.prefixes.index(prefix[:i]) for i in range(len(prefix))]
        reaching = sum(log_probs[node, prefix[i]] for i, node in enumerate(inner))
        for token in range(size):
            sequence = (*prefix, token)
            if sequence in responses.prefixes:
                continue
            p = np.exp(reaching + log_probs[index, token])
            total += p
            if p > 1e-3:
                error = 5 * np.sqrt(p / count)
                assert abs(decided[sequence] / count - p) < error, sequence
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def perturbed(policy):
    """Parameters whose adapter and value head are not zero."""
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)
    return jax.tree.map(noise, policy.init(jax.random.key(0)))


def prepare(policy, config, num_updates, num_episodes, num_rounds, arena, frozen=(), inputs=NONE):
    """The first state, and the update given only a state and a key."""
    optimiser = make_optimiser(config, num_updates)
    start = partial(init_state, optimiser=optimiser, kl_coef=config.kl_coef, num_players=1)
    state = jax.jit(start, static_argnums=1)(jax.random.key(0), policy)
    setup = Setup(
        policy,
        config,
        remembers=(1, 2, False),
        num_updates=num_updates,
        num_episodes=num_episodes,
        num_rounds=num_rounds,
    )
    update = jax.jit(ppo.make_update(setup))
    given = inputs_of(config, arena, policy, frozen, inputs)
    return state, lambda state, key: update(state, given._replace(key=key))


def started_from(trainable, state):
    """The state with the only player's parameters replaced."""
    own = jax.tree.map(lambda leaf: leaf[None], trainable)
    return state._replace(players=state.players._replace(trainable=own))


def torch_twin(tiny, policy, trainable, folder):
    """The same model in PEFT, float64, with a value head."""
    save_peft(folder, policy.config, trainable["adapter"], policy.lora, "tiny")
    twin = PeftModel.from_pretrained(copy.deepcopy(tiny[3]), folder, is_trainable=True)
    head = {
        name: torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=True)
        for name, leaf in trainable["value_head"].items()
    }
    return twin.double().eval(), head


def torch_scores(twin, head, prompts, tokens):
    """Log-probabilities and values of sampled tokens, `[num_samples, budget]` each."""
    pairs = zip(prompts, tokens, strict=True)
    ids = torch.tensor([[*prompt, *answer[:-1]] for prompt, answer in pairs])
    out = twin(input_ids=ids, output_hidden_states=True)
    first = len(prompts[0]) - 1
    log_probs = out.logits[:, first:].log_softmax(-1)
    picked = log_probs.gather(-1, torch.tensor(tokens)[..., None])[..., 0]
    values = out.hidden_states[-1][:, first:] @ head["kernel"] + head["bias"]
    return picked, values


def test_tails_of_illegal_answers_come_from_the_model(tiny, tmp_path):
    """The mean surprise of what follows an illegal token is its entropy."""
    policy, weights, inputs = tiny_policy(tiny)
    trainable = perturbed(policy)
    twin, head = torch_twin(tiny, policy, trainable, tmp_path)
    prompt, outcome = jnp.arange(64) % 16, jnp.full(64, 2)

    @jax.jit
    def write(key):
        _, logits = policy.bind(weights, inputs).table_and_logits(trainable)
        return policy.bind(weights, inputs).write(
            trainable, logits=logits, key=key, prompt=prompt, outcome=outcome
        )

    surplus = []
    for seed in range(40):
        tokens = np.asarray(write(jax.random.key(seed)))
        prompts = np.concatenate(inputs.tokens)[np.asarray(prompt)]
        ids = torch.tensor(np.concatenate([prompts, tokens[:, :1]], axis=1))
        with torch.no_grad():
            rows = twin(input_ids=ids).logits[:, -1].log_softmax(-1).numpy()
        # A first token that begins a label was followed by what does not end it: conditioned.
        free = ~np.isin(tokens[:, 0], [token for (token,) in PREFIXES])
        entropy = -(np.exp(rows) * rows).sum(-1)
        surplus += list((rows[np.arange(64), tokens[:, 1]] + entropy)[free])
    surplus = np.array(surplus)
    assert len(surplus) > 1500
    assert abs(surplus.mean()) < 5 * surplus.std() / np.sqrt(len(surplus))
    assert surplus.std() > 0.1


# The partial labels of `tiny_policy`: "a" and "c".
PREFIXES = [(2 + i,) for i in range(94) if i % 26 in (0, 2)]


@pytest.mark.parametrize(("epochs", "trees"), [(1, 1), (4, 1), (1, 4)])
def test_an_update_equals_the_papers_formulas(tiny, tmp_path, epochs, trees):
    """Loss, advantages, KL weight and parameters, from float64 formulas and torch's gradients."""
    policy, weights, inputs = tiny_policy(tiny, letters=4, chunks=trees)
    config = dataclasses.replace(PAPER, epochs=epochs, sample_with_dropout=False)
    arena, seed_key = environment("game"), jax.random.key(3)
    state, update = prepare(policy, config, 10, 4, 5, arena, weights, inputs)
    trainable = perturbed(policy)
    state = started_from(trainable, state)
    after, metrics = update(state, seed_key)

    # What was played and said, from the same keys.
    keys = jax.random.split(jax.random.fold_in(seed_key, 0), 3)
    model = policy.bind(weights, inputs)
    table, logits = jax.jit(model.table_and_logits)(trainable)
    played = play_alone(keys[0], table.log_probs, arena, ONE, 4, 5)
    prompt, outcome = (x.ravel().astype(jnp.int32) for x in (played.prompt, played.outcome))
    answer_key = jax.random.split(keys[1], 1)[0]
    tokens = jax.jit(model.write)(
        trainable, logits=logits, key=answer_key, prompt=prompt, outcome=outcome
    )
    tokens = np.asarray(tokens)
    prompts = np.concatenate(inputs.tokens)[np.asarray(prompt)].tolist()

    twin, head = torch_twin(tiny, policy, trainable, tmp_path)
    log_prob, value = torch_scores(twin, head, prompts, tokens)
    with torch.no_grad(), twin.disable_adapter():
        base, _ = torch_scores(twin, head, prompts, tokens)
    old, v, base = (x.detach().numpy() for x in (log_prob, value, base))
    k = old - base
    score = np.asarray(played.reward, np.float64).ravel()
    score = (score - score.mean()) / score.std(ddof=1)
    r1, r2 = -0.2 * k[:, 0], -0.2 * k[:, 1] + score
    a2 = r2 - v[:, 1]
    a1 = r1 + v[:, 1] - v[:, 0] + 0.95 * a2
    advantage = np.stack([a1, a2], -1)
    returns = torch.tensor(advantage + v)
    whitened = (advantage - advantage.mean()) / np.sqrt(advantage.var(ddof=1) + 1e-8)
    batch = make_token_batch(
        jnp.asarray(old),
        jnp.asarray(v),
        token_rewards(*map(jnp.asarray, (old, base, score)), 0.2),
        config,
    )
    np.testing.assert_allclose(batch.advantage, whitened, atol=1e-5)

    trained = [p for p in twin.parameters() if p.requires_grad] + list(head.values())
    adam = torch.optim.Adam(trained, lr=1e-3)
    a, old_t, v_t = torch.tensor(whitened), torch.tensor(old), torch.tensor(v)
    losses = []
    for _ in range(epochs):
        log_prob, value = torch_scores(twin, head, prompts, tokens)
        ratio = (log_prob - old_t).exp()
        policy_loss = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
        near = value.clamp(v_t - 0.2, v_t + 0.2)
        value_loss = 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2).mean()
        loss = policy_loss + 0.1 * value_loss
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    np.testing.assert_allclose(metrics["loss"][0], np.mean(losses), atol=1e-5)
    error = np.clip(k.sum(1).mean() / 6 - 1, -0.2, 0.2)
    np.testing.assert_allclose(after.players.kl_coef[0], 0.2 * (1 + error * 5 / 10_000), atol=1e-7)

    theirs = {name.replace(".default", ""): p for name, p in twin.named_parameters()}
    for target, pair in alone(after.players.trainable)["adapter"].items():
        for layer in range(tiny[0].num_layers):
            stem = f"base_model.model.model.layers.{layer}.{LINEAR_NAMES[target]}.lora_"
            for side, got in (("A", pair["a"][layer]), ("B", pair["b"][layer].T)):
                expected = theirs[f"{stem}{side}.weight"].detach().numpy()
                np.testing.assert_allclose(got, expected, atol=1e-5)
    for name, leaf in alone(after.players.trainable)["value_head"].items():
        np.testing.assert_allclose(leaf, head[name].detach().numpy(), atol=1e-5)
        assert np.abs(np.asarray(leaf) - np.asarray(trainable["value_head"][name])).max() > 5e-4


def test_the_kl_weight_follows_the_papers_schedule():
    """While the KL is small, 0.2 shrinks by the factor 1 - 1e-4 an episode of five rounds."""
    state, update = prepare(TABLE, PAPER, 50, 1, 5, environment())
    for _ in range(50):
        state, _ = update(state, jax.random.key(1))
    np.testing.assert_allclose(state.players.kl_coef[0], 0.2 * (1 - 1e-4) ** 50, rtol=1e-5)


def test_a_table_learns_from_tokens_too():
    """With many episodes an update, the token level finds the one-step optimum as well."""
    config = dataclasses.replace(PAPER, learning_rate=0.1)
    state, update = prepare(TABLE, config, 60, 1024, 5, environment("utilitarian"))
    for _ in range(60):
        state, metrics = update(state, jax.random.key(1))
    assert metrics["p_cooperate"][0] > 0.95


def test_dropout_while_sampling_is_used(tiny):
    """With it the behaviour table differs from the one without, and the update still learns."""
    policy, weights, inputs = tiny_policy(tiny, dropout=0.5)
    trainable = perturbed(policy)
    plain = jax.jit(policy.bind(weights, inputs).table)(trainable).log_probs
    tables = {}
    for on in (False, True):
        config = dataclasses.replace(PAPER, sample_with_dropout=on)
        state, update = prepare(policy, config, 1, 400, 1, environment(), weights, inputs)
        state = started_from(trainable, state)
        _, metrics = update(state, jax.random.key(1))
        tables[on] = float(metrics["entropy"][0])
    expected = float(exact_entropy(plain).mean())
    assert abs(tables[False] - expected) < 0.02
    assert abs(tables[True] - tables[False]) > 1e-3
