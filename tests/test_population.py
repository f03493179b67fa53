"""Populations: members are what they would be alone, have names, and are checked."""

import shutil

import chex
import jax
import numpy as np
import pytest
import yaml
from conftest import reference_table
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.config import PPOConfig
from jaxmoral.errors import UserError
from jaxmoral.language.prompt_tree import pack
from jaxmoral.language.responses import index_pieces, spell
from jaxmoral.learning import ppo
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.language_policy import LanguagePolicy, PackedPrompts
from jaxmoral.learning.population import over_members, state_prefix
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.state import UpdateInputs, adjustable, init_state, make_optimiser
from jaxmoral.learning.training import fit_agent, fit_population
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.runs import read_run
from jaxmoral.models.lora import Lora
from jaxmoral.world.games import get_game
from jaxmoral.world.machines import stack
from jaxmoral.world.opponents import get_opponent
from jaxmoral.world.rewards import get_reward, reward_table
from jaxmoral.world.rollout import Environment

TABULAR = ["--model.source", "tabular", "--ppo.learning_rate", "0.3", "--updates", "6"]
SMALL = [*TABULAR, "--env.episodes", "64"]


def members(*flags):
    return configs.load_members(None, flags)


def test_labels_of_other_lengths_are_no_members_of_one_population(shallow):
    """Sampled answers have as many tokens as the longest label of all."""
    flags = ["--model.source", str(shallow), "--ppo.level", "token"]
    flags += ["--prompt.labels", "[[X, Y], [Who1, You2]]"]
    with pytest.raises(UserError, match=r"prompt.labels: .* as many tokens; here they have 1 to 4"):
        fit_population(members(*flags), say=quiet)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--reward.name", "[game, deontological]", "--env.opponent", "[tit-for-tat, prober]"],
        ["--ppo.learning_rate", "[0.1, 0.3]", "--reward.xi", "[1, 4]", "--ppo.gamma", "[0, 0.9]"],
        ["--ppo.estimator", "exact", "--env.game", "[ipd, bos]", "--env.noise", "[0, 0.1]"],
        ["--env.opponent", "learner", "--ppo.kl_coef", "[0.01, 0.5]", "--env.game", "bos"],
        ["--reward.then", "game", "--reward.switch_at", "[2, 4]", "--ppo.epochs", "2"],
        ["--ppo.level", "token", "--ppo.normalise_rewards", "true", "--ppo.entropy_coef", "[0, 1]"],
        ["--env.payoff_draws", "4", "--env.memory", "2", "--reward.then", "[utilitarian, game]"],
        ["--env.payoff_draws", "2", "--env.opponent", "[extortionate(3), prober]"],
        ["--reward.transition", "linear", "--reward.then", "[utilitarian, game]"],
    ],
)
def test_each_member_is_bit_for_bit_what_it_is_alone(flags):
    configurations = members(*SMALL, "--seed", "[0, 3]", *flags)
    assert len(configurations) in (4, 8, 16)
    together = fit_population(configurations, say=quiet)
    for name in list(configurations)[::3]:
        alone = fit_agent(configurations[name], say=quiet)
        chex.assert_trees_all_equal(together[name].state, alone.state)
        # Means over samples are only logged; their last digit depends on the order of a sum.
        last, expected = together[name].history[-1], alone.history[-1]
        for key in ("reward_mean", "loss", "kl", "entropy", "p_illegal"):
            assert last[key] == pytest.approx(expected[key], rel=1e-5), key
        assert last["action_types"] == pytest.approx(expected["action_types"], rel=1e-5)


def test_members_on_a_gemma_equal_the_same_alone(tiny):
    """Three updates of four adapters with different settings on one base: 1e-4 relative."""
    config, definition, weights, _ = tiny
    policy = LanguagePolicy(config, definition, Lora(3, 6.0, 0.0, ("q", "v", "down")))
    prompts = [[2, 5, 6, 7 + own, 20 + order] for own in range(4) for order in range(4)]
    responses = spell([b"x", b"y"], index_pieces([None] * 40 + [b"x", b"y"] + [None] * 54), [1], 1)
    branches = [[*ids, *prefix] for ids in prompts for prefix in responses.prefixes]
    tree, last = pack(branches)
    inputs = PackedPrompts(
        tree, last.reshape(16, -1), responses.trie, np.array(prompts, np.int32), np.full(16, 5)
    )
    inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], inputs)
    settings = PPOConfig(learning_rate=1e-2)
    setup = Setup(
        policy, settings, remembers=(1, 2, False), num_updates=3, num_episodes=256, num_rounds=5
    )
    update = ppo.make_update(setup)
    optimiser = make_optimiser(settings, 3)
    game = get_game("ipd")
    names = ["tit-for-tat", "random", "prober", "grim-trigger"]
    kinds = ["game", "deontological", "utilitarian", "game+deontological"]
    tables = [reward_table(game, get_reward(kind), 3.0, -6.0)[None] for kind in kinds]
    rates = [1e-2, 3e-3, 1e-2, 2e-2]
    reference = jax.jit(jax.vmap(lambda one: reference_table(policy, weights, one)))(inputs)
    keys = jax.random.split(jax.random.key(0), 4)
    adjusted = [adjustable(settings) | {"learning_rate": np.float32(rate)} for rate in rates]

    @jax.jit
    def start(key):
        return init_state(key, policy, optimiser=optimiser, kl_coef=0.02, num_players=1)

    alone = []
    step = jax.jit(update)
    for index in range(4):
        state = start(keys[index])
        arena = Environment(get_opponent(names[index]), tables[index])
        for _ in range(3):
            state, metrics = step(
                state,
                UpdateInputs(keys[index], weights, inputs, reference, arena, adjusted[index]),
            )
        alone.append((state.players.trainable, metrics))

    every = jax.vmap(start, out_axes=state_prefix(None, 0))(keys)
    arena = Environment(stack([get_opponent(name) for name in names]), np.stack(tables))
    joined = {name: np.stack([one[name] for one in adjusted]) for name in adjusted[0]}
    step = jax.jit(over_members(update, {"key", "environment", "settings"}))
    given = UpdateInputs(keys, weights, inputs, reference, arena, joined)
    for _ in range(3):
        every, metrics = step(every, given)
    for index, (trainable, expected) in enumerate(alone):
        for ours, theirs in zip(
            jax.tree.leaves((every.players.trainable, metrics)),
            jax.tree.leaves((trainable, expected)),
            strict=True,
        ):
            scale = float(np.max(np.abs(theirs))) + 1e-9
            np.testing.assert_allclose(ours[index] / scale, theirs / scale, atol=1e-4)


def test_a_folder_holds_runs_by_name(tmp_path):
    folder = tmp_path / "many"
    flags = ["--seed", "[0, 1]", "--reward.name", "[game, utilitarian]"]
    together = fit_population(members(*SMALL, *flags), folder, say=quiet)
    name = "seed=1,reward.name=utilitarian"
    alone = load_trained(folder / name)
    assert (alone.config.seed, alone.config.reward.name) == (1, "utilitarian")
    chex.assert_trees_all_equal(alone.trainable, together[name].trainable)
    run = read_run(folder / name)
    assert [record["update"] for record in run.history] == [1, 2, 3, 4, 5, 6]
    assert run.history == together[name].history
    by_folder = evaluate_agent(folder / name, ["ipd"], protocols=["exact"])
    in_memory = evaluate_agent(together[name], ["ipd"], protocols=["exact"])
    assert by_folder["suites"] == in_memory["suites"]


@pytest.mark.slow
def test_a_population_is_resumed_with_nothing_lost(tmp_path):
    flags = [*SMALL, "--checkpoint_every", "2", "--seed", "[0, 1, 2]"]
    whole = fit_population(members(*flags), tmp_path / "whole", say=quiet)
    cut = tmp_path / "cut"
    fit_population(members(*flags), cut, say=quiet)
    # Go back to the checkpoint of update 4, as if the rest had been lost.
    shutil.rmtree(cut / "checkpoints" / "6")
    resumed = fit_population(members(*flags), cut, resume=True, say=quiet)
    for name, agent in whole.items():
        for ours, theirs in zip(
            jax.tree.leaves(resumed[name].state), jax.tree.leaves(agent.state), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert len(read_run(cut / name).history) == 6


def test_one_lost_member_does_not_take_the_others_along(capsys):
    flags = [*SMALL, "--ppo.value_coef", "[0.1, 3e38]", "--ppo.max_grad_norm", ".inf"]
    found = fit_population(members(*flags), say=quiet)
    lost, kept = found["ppo.value_coef=3e38"], found["ppo.value_coef=0.1"]
    assert not np.isfinite(lost.history[-1]["param_norm"])
    assert np.isfinite(kept.history[-1]["param_norm"])
    assert "ppo.value_coef=3e38: not finite numbers from update" in capsys.readouterr().out
    alone = fit_agent(members(*SMALL, "--ppo.max_grad_norm", ".inf")[""], say=quiet)
    assert kept.history[-1]["loss"] == alone.history[-1]["loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora.rank", "[4, 8]"], r"lora\.rank: cannot vary .* jaxmoral\.sweep"),
        (["--env.episodes", "[64, 128]"], r"env\.episodes: cannot vary"),
        (["--ppo.learning_rate_schedule", "[constant, linear]"], "schedule: cannot vary"),
        (["--env.opponent", "[learner, random]"], "learner cannot share"),
        (["--env.game", "['public-goods(3)', ipd]", "--env.opponent", "random"], "same number of"),
        (["--seed", "[]"], "seed: the list of values is empty"),
        (["--seed", "[1, 1]"], "stands twice"),
        (["--seed", str(list(range(100))), "--reward.xi", str(list(range(50)))], "5,000 comb"),
        (["--reward.name", "[game, nonsense]"], "unknown name 'nonsense'"),
        (["--prompt.persona", f"[{'mild ' * 60}, none]"], "persona: the member .* longer name"),
    ],
)
def test_what_cannot_be_a_population_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        fit_population(members(*TABULAR, *flags), say=quiet)


def test_a_list_is_a_value_where_the_key_is_a_list():
    one = members("--prompt.labels", "[A, B]", "--evaluation.suites", "[trained]")
    assert list(one) == [""]
    two = members("--prompt.labels", "[[A, B], [X, Y]]")
    assert list(two) == ["prompt.labels=A+B", "prompt.labels=X+Y"]
    assert two["prompt.labels=X+Y"].prompt.labels == ("X", "Y")
    paths = members("--env.opponent", "[runs/a, random]")  # names are of folders
    assert list(paths) == ["env.opponent=runs_a", "env.opponent=random"]


def test_a_population_of_one_is_a_run(tmp_path):
    fit_population(members(*SMALL, "--seed", "[3]"), tmp_path / "one", say=quiet)
    config = load_trained(tmp_path / "one").config
    assert config.seed == 3


@pytest.mark.parametrize("name", ["a/b", "..", ".", ""])
def test_members_are_called_like_folders(tmp_path, name):
    config = configs.load(None, list(SMALL))
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        fit_population({"a": config, name: config}, tmp_path / "many", say=quiet)
    with pytest.raises(UserError, match=r"config: needs what jaxmoral\.parse .* got a dict"):
        fit_population({"": {"updates": 3}})
    with pytest.raises(UserError, match="source: needs a run's folder.* got a dict"):
        evaluate_agent({"updates": 3})
    with pytest.raises(UserError, match="members: there are none"):
        fit_population({}, tmp_path / "many", say=quiet)
    assert not [*tmp_path.iterdir()]


def test_a_member_is_not_resumed_alone(tmp_path):
    folder = tmp_path / "many"
    fit_population(members(*SMALL, "--seed", "[0, 1]"), folder, say=quiet)
    config = configs.load(folder / "seed=0" / "config.yaml")
    with pytest.raises(UserError, match="is a member of a population; resume"):
        fit_agent(config, folder / "seed=0", resume=True, say=quiet)
    load_trained(folder / "seed=0")  # and nothing was left behind
    with pytest.raises(UserError, match="holds a population; name a member's folder"):
        load_trained(folder)


def test_switch_checkpoints_of_all_members_are_kept(tmp_path):
    flags = ["--reward.then", "game", "--reward.switch_at", "[1, 2]", "--checkpoint_every", "1"]
    fit_population(members(*SMALL, *flags), tmp_path / "many", say=quiet)
    kept = {int(path.name) for path in (tmp_path / "many" / "checkpoints").iterdir()}
    assert kept == {1, 2, 4, 5, 6}


def test_members_that_draw_the_same_payoffs_by_chance_stay_apart():
    """Seeds 1 and 2 draw alike in some of 40 updates; shapes must not follow."""
    flags = ["--env.payoff_draws", "1", "--env.payoff_range", "[1, 5]", "--updates", "40"]
    found = fit_population(members(*SMALL, *flags, "--seed", "[1, 2]"), say=quiet)
    assert len(found["seed=1"].history) == 40


def test_a_damaged_list_of_members_is_one_line(tmp_path):
    folder = tmp_path / "many"
    fit_population(members(*SMALL, "--seed", "[0, 1]"), folder, say=quiet)
    (folder / "members.yaml").write_text(yaml.safe_dump({"not": "names"}))
    with pytest.raises(UserError, match="damaged: it must list names"):
        load_trained(folder / "seed=0")
    (folder / "members.yaml").write_text(yaml.safe_dump(["seed=1"]))
    with pytest.raises(UserError, match="is no member"):
        load_trained(folder / "seed=0")


def test_a_checkpoint_of_other_members_is_refused(tmp_path):
    folder = tmp_path / "many"
    fit_population(members(*SMALL, "--seed", "[0, 1]"), folder, say=quiet)
    other = members(*SMALL, "--seed", "[0, 1]", "--reward.xi", "5")
    with pytest.raises(UserError, match=r"differs in reward\.xi"):
        fit_population(other, folder, resume=True, say=quiet)
    other = members(*SMALL, "--seed", "[0, 2, 3, 4]")
    with pytest.raises(UserError, match=r"not to the members seed=0; seed=2; seed=3 and 1 more"):
        fit_population(other, folder, resume=True, say=quiet)
    assert not (folder / "damaged").exists()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 6
