"""Configuration: YAML and flags in, typed values or one clear line out."""

import pytest
import yaml

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.learning.population import check_population
from jaxmoral.learning.resolve import resolve

NUMPY = ["--env.streams", "numpy"]


def test_yaml_then_flags_then_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("ppo: {learning_rate: 1e-3, clip: 0.1}\nenv: {game: ish}\n")
    config = configs.load(path, ["--ppo.clip", "0.3", "--prompt.labels", "[X, Y]", "--seed", "4"])
    assert config.ppo.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as a string
    assert config.ppo.clip == 0.3
    assert config.env.game == "ish"
    assert config.prompt.labels == ("X", "Y")
    assert config.seed == 4
    assert config.env.rounds == configs.Config().env.rounds


def test_a_flag_and_its_value_may_be_one_text():
    pairs = ["--ppo.clip", "0.3", "--prompt.labels", "[X, Y]", "--seed", "4"]
    joined = ["--ppo.clip=0.3", "--prompt.labels=[X, Y]", "--seed", "4"]
    assert configs.load(None, joined) == configs.load(None, pairs)
    text = "--{c}=1 or {d}=2?"  # a value is taken as it is
    assert configs.load(None, ["--prompt.wording", text]).prompt.wording == text
    assert configs.load(None, [f"--prompt.wording={text}"]).prompt.wording == text
    assert list(configs.load_members(None, ["--seed=[0, 1]"])) == ["seed=0", "seed=1"]


def test_saved_configurations_come_back_equal(tmp_path):
    flags = ["--games.mine", "{CC: [1, 2], CD: [0, 0.5], DC: [3, 0], DD: [1, 1]}"]
    config = configs.load(None, [*flags, "--lora.targets", "[q, v]", "--env.game", "mine"])
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == config
    assert configs.differences(config, configs.Config()) == [
        "env.game",
        "games.mine.CC",
        "games.mine.CD",
        "games.mine.DC",
        "games.mine.DD",
        "lora.targets",
    ]


def test_what_an_older_configuration_lacks_has_its_default():
    whole = configs.to_dict(configs.load(None, ["--ppo.barrier_coef", "0.5"]))
    older = configs.to_dict(configs.Config())
    del older["plugins"], older["ppo"]["barrier_coef"]
    assert configs.tree_differences(older, whole) == ["ppo.barrier_coef"]


def test_every_shipped_configuration_loads():
    from pathlib import Path

    paths = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert paths
    for path in paths:  # also as the one step that its members share, if it has several
        check_population([resolve(one) for one in configs.load_members(path).values()])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--ppo.learning_rat", "1"],
            "unknown key 'ppo.learning_rat'; did you mean 'ppo.learning_",
        ),
        (["--ppo.zzz", "1"], "the keys are ppo.level, ppo.estimator, ppo.sample_with_dropout"),
        (["--wrong.key", "1"], "unknown key 'wrong'; the keys are preset, model.source"),
        (["--env", "null", "--env.game", "ish"], "env: is a group of keys, such as env.game"),
        (["--lora.rank", "eight"], "lora.rank: input should be a valid integer.* got 'eight'"),
        (["--lora.rank", "0"], "lora.rank: input should be greater than 0, got 0"),
        (["--ppo.learning_rate", ".inf"], "ppo.learning_rate: input should be a finite number"),
        (["--env.episodes", "2147483648"], "env.episodes: input should be less than 2147483648"),
        (["--ppo.clip", "-1"], "ppo.clip: input should be greater than 0"),
        (["--ppo.gamma", "1.5"], "ppo.gamma: input should be less than or equal to 1"),
        (["--reward.xi", ".nan"], "reward.xi: input should be"),
        (["--model.dtype", "int8"], "'auto', 'float32' or 'bfloat16', got 'int8'"),
        (["--lora.targets", "[q, z]"], "'q', .*, 'layer_gate' or 'layer_out', got 'z'"),
        (["--lora.targets", "[]"], "lora.targets: names nothing; name at least one"),
        (["--prompt.labels", "[A]"], "prompt.labels"),
        (["--ppo.minibatches", "7"], "ppo.minibatches: 7 does not divide"),
        (["--seed"], "every flag needs a value; '--seed' has none"),
        (["--seed", "1", "--updates"], "every flag needs a value; '--updates' has none"),
        (["--opponent", "random"], "unknown key 'opponent'; did you mean 'env.opponent'?"),
        (["--lr", "1"], "unknown key 'lr'; did you mean 'ppo.learning_rate'?"),
        (["--rounds", "9"], "did you mean 'env.rounds' or 'evaluation.rounds'?"),
        (["--reward", "utilitarian"], "reward: is a group of keys, such as reward.name, got 'util"),
        (["--prompt.labels", "[yes,yes]"], "prompt.labels.0: input should be .*write them in quot"),
        (["--prompt.labels", "help,abandon"], r"a list is written \[help, abandon\]"),
        (["--sed=1"], "unknown key 'sed'; did you mean 'seed'"),
        (["seed", "1"], "expected a flag"),
        (["--seed.x", "1"], "seed"),
        (["--games.mine", "{CC: [one, 1]}"], "games.mine.CC"),
        (["--updates", "true"], "updates"),
        (["--env.memory", "4"], "env.memory: input should be less than or equal to 3, got 4"),
        (["--env.max_prompts", "32769"], "env.max_prompts: input should be less than or equal to"),
        (["--env.noise", "yes"], "env.noise: input should be a number, got True"),
        (["--ppo.learning_rate", "true"], "ppo.learning_rate: .* a number, got True"),
        (["--tracker", "tensorbord"], "tracker.*: input should be .*got 'tensorbord'"),
        (["--plugins", "[3]"], "plugins.0: input should be a valid string, got 3"),
        (["--mixture.opponents", "[random]"], r"weights are written {tit-for-tat: 2, random: 1}"),
        (["--env.noise", "1.1"], "env.noise: input should be less than or equal to 1"),
        (
            ["--env.episodes", "2147483647"],
            "env.episodes: 2,147,483,647 of 5 rounds are 10,737,418",
        ),
        (
            ["--env.episodes", "536870912", "--env.rounds", "4"],
            r"more than arrays can index \(2,147,483,647\); lower it or env.rounds",
        ),
        (["--evaluation.episodes", "429496730"], "evaluation.episodes: 429,496,730 of 5 rounds"),
        (["--env.payoff_draws", "3"], "env.payoff_draws: 3 does not divide env.episodes = 4096"),
        (["--env.payoff_range", "[5, 5]"], "env.payoff_range: needs two rising numbers"),
        (["--env.streams", "numpy", "--env.memory", "2"], "env.streams: numpy needs env.memory 1"),
        (
            ["--env.streams", "numpy", "--env.blank_start", "true"],
            "numpy needs .*blank_start false",
        ),
        (["--env.streams", "numpy", "--env.payoff_draws", "2"], "numpy needs .*payoff_draws 0"),
        (["--reward.transition", "linear"], "reward.transition: linear needs reward.then"),
        (["--ppo.estimator", "exact", "--ppo.minibatches", "2"], "exact needs ppo.minibatches 1"),
        (["--ppo.estimator", "exact", "--ppo.level", "token"], "exact needs ppo.level outcome"),
    ],
)
def test_bad_values_get_one_line_that_names_the_key(flags, message):
    with pytest.raises(UserError, match=message) as caught:
        configs.load(None, flags)
    assert "\n" not in str(caught.value)


def test_a_group_given_as_one_flag_leaves_its_other_keys(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("env: {episodes: 64, rounds: 3}\nmixture: {opponents: {random: 1, joss: 2}}\n")
    flags = ["--env", "{game: ish}", "--mixture", "{opponents: {bully: 1}}", "--env.rounds", "4"]
    config = configs.load(file, flags)
    assert (config.env.game, config.env.episodes, config.env.rounds) == ("ish", 64, 4)
    assert config.mixture.opponents == {"bully": 1}  # a value, not a group


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games.mine", "{CC: [1], CD: [0, 4], DC: [4, 0], DD: [1, 1]}"], "games.mine.CC: needs"),
        (["--games.mine", "{CC: [1, 1]}"], "games.mine: needs exactly the keys CC, CD, DC, DD"),
        (["--games.mine", "{C: [0, 1], D: [1]}"], "games.mine: needs two rows"),
        (["--games.ipd", "{C: [0, 1], D: [1, 2]}"], "games.ipd: the name is taken by a game with"),
        (["--opponents.mine", "{cooperate: [1]}"], "opponents.mine: needs cooperate, transitions"),
        (
            ["--opponents.mine", "{cooperate: [2], transitions: [[0, 0, 0, 0]]}"],
            "opponents.mine.cooperate: ",
        ),
        (
            ["--games.mine", "{CC: [1e39, 1], CD: [0, 4], DC: [4, 0], DD: [1, 1]}"],
            "finite numbers up to 1e",
        ),
        (["--games.mine", "{C: [0, 1e39], D: [1, 2]}"], "games.mine: needs finite numbers"),
        (["--env.opponent", "noisy(" * 9 + "random" + ", 0.1)" * 9], "more than 8 brackets"),
        (["--prompt.wording", "{choices:>999999999} is your choice"], "prompt.wording: .* without"),
        (["--prompt.wording", "{choices!r} is your choice"], "prompt.wording: .* without"),
        (["--env.memory", "3", "--env.max_prompts", "255"], "env.memory: 3 remembered rounds of"),
        (
            [
                "--mixture.games",
                "[ipd, bos]",
                "--mixture.conditions",
                "2",
                "--env.max_prompts",
                "31",
            ],
            "make 32 prompts, .* lower env.payoff_draws or mixture.conditions",
        ),
        (["--env.payoff_range", "[1, 2]", "--env.payoff_draws", "2"], "env.payoff_range: 1 to 2"),
        (["--env.game", "nope"], "^env.game: unknown name 'nope'"),
        (["--evaluation.games", "[nope]"], "^evaluation.games: unknown name 'nope'"),
        (["--evaluation.opponents", "[nope]"], "^evaluation.opponents: unknown name 'nope'"),
        (["--env.opponent", "past(0)"], r"^env.opponent: 'past\(0\)' says nothing .*past\(10\)"),
        (["--env.game", "public-goods(3)", "--env.opponent", "learner"], "learner needs a game of"),
        (["--env.game", "public-goods(3)"], "env.opponent: unknown name 'tit-for-tat'"),
        (
            ["--env.game", "threshold-goods(3,3)", "--env.opponent", "random", *NUMPY],
            "env.streams: numpy has no numbers for random",
        ),
    ],
)
def test_what_a_configuration_describes_is_checked_before_a_model_is_loaded(flags, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve(configs.load(None, flags))
    assert "\n" not in str(caught.value)


def test_a_flags_value_is_the_whole_text():
    """Nothing in it is a comment, and numbers are what people write."""
    flags = ["--prompt.persona", "Be kind # and fair", "--env.opponent", "runs/a #2"]
    config = configs.load(None, [*flags, "--seed", "010", "--updates=1_000"])
    assert config.prompt.persona == "Be kind # and fair"
    assert config.env.opponent == "runs/a #2"
    assert (config.seed, config.updates) == (10, 1000)
    assert configs.load(None, ["--prompt.persona", "'Be kind: always'"]).prompt.persona == (
        "Be kind: always"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2\n", "must hold keys and values"),
        ("false\n", "must hold keys and values"),
        ("x: 1", "unknown key"),
        ("env.game: ish", "unknown key 'env.game'; a file holds it as game inside of env"),
        ("env.zzz: ish", "unknown key 'env.zzz'; the keys are env.game"),
        ("env:\n  game: ish\nseed: 1\nenv: {}\n", r"line 4: the key 'env' stands twice"),
        ("games: {a: {CC: [1, 1], CC: [2, 2]}}", "line 1: the key 'CC' stands twice"),
        ("updates: 1:30", "updates: input should be a valid integer, got '1:30'"),
        ("lora: {alpha: 1:30.5}", "lora.alpha: input should be a valid number, .* got '1:30.5'"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        configs.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        configs.load(tmp_path / "none.yaml")


def test_yaml_dump_is_plain():
    text = yaml.safe_dump(configs.to_dict(configs.Config()))
    assert "!!" not in text
