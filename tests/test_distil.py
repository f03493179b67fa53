"""Self-distillation on a tiny model: against plain sums, finite differences, and its teacher."""

import jax
import numpy as np
import pytest
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.api import train_agent
from jaxmoral.errors import UserError
from jaxmoral.language.prompts import Condition
from jaxmoral.learning.agent import policy_table
from jaxmoral.learning.distil import behind, distil_loss
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.training import fit_agent
from jaxmoral.world.games import get_game

PERSONA = "You are in a game with another player, and you choose Y. Y Y Y Y Y."


@pytest.fixture(scope="module")
def flags(shallow):
    given = ["--model.source", str(shallow), "--prompt.labels", "[X, Y]", "--objective", "distil"]
    given += ["--distil.persona", PERSONA, "--ppo.estimator", "exact", "--updates", "60"]
    return [*given, "--ppo.learning_rate", "1e-3", "--ppo.learning_rate_schedule", "cosine"]


@pytest.fixture(scope="module")
def trained(flags):
    return fit_agent(configs.load(None, flags), say=quiet)


def tables(trained):
    """The teacher's, the base's and the agent's log-probabilities."""
    agent = trained.agent
    shown, base = (
        Condition(get_game("ipd"), agent.presentation),
        agent.policy.reference_parameters(),
    )
    each = (behind(PERSONA, shown), base), (shown, base), (shown, trained.trainable)
    return [np.asarray(policy_table(agent, *one).log_probs, np.float64) for one in each]


def apart(teacher, log_probs):
    return np.sum(np.exp(teacher) * (teacher - log_probs), -1).mean()


def test_the_agent_becomes_like_its_teacher(trained):
    teacher, base, agent = tables(trained)
    assert apart(teacher, agent) < 0.02 * apart(teacher, base)
    assert np.abs(teacher - base).max() > 0.3
    np.testing.assert_allclose(agent, teacher, atol=0.1)
    losses = [record["distil_kl"] for record in trained.history]
    assert losses[-1] < 0.02 * losses[0]
    assert trained.history[-1]["kl"] > 0.5 * losses[0]  # from the base, measured as ever


def test_what_is_lost_is_the_mean_divergence_of_the_tables(trained):
    teacher, base, _ = tables(trained)
    first = trained.history[0]
    assert first["loss"] == first["distil_kl"] == pytest.approx(apart(teacher, base), rel=1e-3)


def test_its_gradient_is_that_of_finite_differences(trained):
    agent, teacher = trained.agent, tables(trained)[0]
    prompts = agent.prompter.pack([[Condition(get_game("ipd"), agent.presentation)]])
    model = agent.policy.bind(agent.frozen, jax.tree.map(lambda leaf: leaf[0], prompts))
    random = np.random.default_rng(0)
    start = jax.tree.map(
        lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32),
        agent.policy.init(jax.random.key(1)),
    )
    target = np.asarray(teacher, np.float32)
    read = jax.jit(model.table)
    gradient = jax.jit(jax.grad(lambda own: distil_loss(model.table(own), target)[0]))(start)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))

    def lost(by):
        moved = jax.tree.map(lambda x, g: x + by * g / length, start, gradient)
        return apart(teacher, np.asarray(read(moved).log_probs, np.float64))

    assert length == pytest.approx((lost(0.01) - lost(-0.01)) / 0.02, rel=2e-2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--distil.persona", "none"], "distil.persona: objective distil needs one"),
        (["--objective", "reward"], "distil.persona: needs objective distil"),
        (["--model.source", "tabular"], "objective: distil needs a model"),
        (["--thinking.tokens", "4"], "objective: distil needs thinking.tokens 0"),
        (["--ppo.estimator", "sampled", "--ppo.level", "token"], "needs ppo.level outcome"),
        (["--reward.exploitability", "1"], "reward.exploitability: has no effect"),
    ],
)
def test_what_it_cannot_stand_with_is_refused(more, message, flags):
    with pytest.raises(UserError, match=message):
        configs.load(None, [*flags, *more])


def test_a_persona_of_several_lines_is_kept_with_the_run(flags, tmp_path):
    text = "You are kind.\nAlways cooperate with others. " + "Be fair. " * 200
    (tmp_path / "kind.txt").write_text(text)
    config = resolve(configs.load(None, [*flags, "--distil.persona", str(tmp_path / "kind.txt")]))
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml").distil.persona == config.distil.persona
    assert "\nAlways" in config.distil.persona


@pytest.mark.slow
def test_a_run_that_goes_on_longer_is_a_longer_run(flags, tmp_path):
    """Nothing in it falls with the updates: the entropy is no part of what it learns."""
    said: list[str] = []
    constant = ["--ppo.learning_rate_schedule", "constant", "--updates"]
    for updates in ("1", "2"):
        config = configs.load(None, [*flags, *constant, updates])
        run = train_agent(config, tmp_path, resume=updates == "2", say=said.append)
    assert any("2 updates instead of 1; the same as a run of 2" in line for line in said)
    assert [record["update"] for record in run.history] == [2]
    assert not {"entropy_coef"} & set(run.history[0])


def test_an_unknown_persona_is_named(flags):
    with pytest.raises(UserError, match=r"distil.persona: unknown .*saintly"):
        fit_agent(configs.load(None, [*flags, "--distil.persona", "saintly"]), say=quiet)
