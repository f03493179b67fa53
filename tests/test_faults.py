"""Crashes, full disks, second writers: nothing is lost, nothing is half written, one clear line."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusters import finish, start_cluster
from etils import epath
from processes import Running, command
from run_files import content, quiet, records

from jaxmoral import config as configs
from jaxmoral import train_agent
from jaxmoral.errors import UserError
from jaxmoral.learning import first_state
from jaxmoral.learning.checkpoint import Checkpoints
from jaxmoral.learning.damage import checksum, seal_of
from jaxmoral.learning.tabular_policy import TabularPolicy
from jaxmoral.measuring.evaluation import evaluate_agent

FLAGS = ["--model.source", "tabular", "--env.episodes", "256", "--checkpoint_every", "2"]


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    enough = ["--kills", "3", "--updates", "150"]
    done = Running("crash_test", tmp_path / "runs", *enough).finish(timeout=500)
    assert done.returncode == 0, done.stderr
    assert "equal to the last bit" in done.stdout
    assert done.stdout.startswith("3 kills")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["150k", "1200k"])  # too small for the first checkpoint, for all
def test_a_full_disk(size, tmp_path):
    elsewhere = tmp_path / "whole"
    done = Running("on_disk", tmp_path, f"size={size}", *FLAGS, "--updates", "40").finish()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code").read_text() == "2"
    said = (tmp_path / "said").read_text().split("\n")
    errors = [line for line in said if line.startswith("error:")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "Traceback" not in "\n".join(said)
    whole = train_agent(configs.load(None, [*FLAGS, "--updates", "40"]), elsewhere, say=quiet)
    resumed = train_agent(
        configs.load(tmp_path / "resumed" / "config.yaml"), tmp_path / "resumed", True, quiet
    )
    assert records(tmp_path / "resumed") == records(elsewhere)
    chex.assert_trees_all_equal(resumed.state, whole.state)


@pytest.mark.slow
def test_a_second_writer_is_refused(tmp_path):
    folder = tmp_path / "run"
    train_agent(configs.load(None, [*FLAGS, "--updates", "2"]), folder, say=quiet)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = command("train", "--output-dir", folder, "--resume")
    assert done.returncode == 2
    assert f"error: another process is training in {folder}" in done.stderr
    evaluate_agent(folder, protocols=["exact"])  # reading is no writing
    train_agent(configs.load(folder / "config.yaml"), folder, resume=True, say=quiet)


@pytest.mark.slow
def test_a_read_only_disk(tmp_path):
    done = Running("on_disk", tmp_path, "ro", *FLAGS).finish()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code").read_text() == "2"
    said = (tmp_path / "said").read_text().strip()
    assert said.startswith("error: --output-dir: cannot write to")


@pytest.mark.slow
def test_a_clock_that_goes_backwards(tmp_path, monkeypatch):
    config = configs.load(None, [*FLAGS, "--updates", "9"])
    whole = train_agent(config, tmp_path / "whole", say=quiet)
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    train_agent(configs.load(None, [*FLAGS, "--updates", "9"]), tmp_path / "back", say=quiet)
    shutil.rmtree(tmp_path / "back" / "checkpoints" / "9")
    again = train_agent(config, tmp_path / "back", resume=True, say=quiet)
    assert records(tmp_path / "back") == records(tmp_path / "whole")
    chex.assert_trees_all_equal(again.state, whole.state)


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_is_noticed(seed):
    random = np.random.default_rng(seed)
    state = {
        "a": random.standard_normal((7, 5), np.float32),
        "n": np.int32([3, 4]),
        "u": np.int32(9),
    }
    before = int(checksum(state))
    for _ in range(40):
        name = random.choice(list(state))
        raw = bytearray(state[name].tobytes())
        raw[random.integers(len(raw))] ^= 1 << int(random.integers(8))
        changed = np.frombuffer(bytes(raw), state[name].dtype).reshape(state[name].shape)
        assert int(checksum(state | {name: changed})) != before


def test_a_checksum_is_a_sum_with_places():
    """By a loop; arrays turned round or exchanged have another."""
    first, second = np.arange(5, dtype=np.int32), np.float32([[0.5, -2], [3, 4]])

    def by_loop(*arrays):
        total = 0
        for array in arrays:
            own = (
                (2 * place + 1) * int.from_bytes(array.ravel()[place].tobytes(), "little")
                for place in range(array.size)
            )
            total = 3 * total + sum(own)
        return total % 2**32

    for arrays in ([first, second], [first[::-1].copy(), second], [first, second.T.copy()]):
        assert int(checksum(arrays)) == by_loop(*arrays)
    assert (
        len({int(checksum([a, b])) for a in (first, first[::-1]) for b in (second, second.T)}) == 4
    )
    assert int(checksum([first, second])) != int(checksum([second, first]))


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(tmp_path):
    """The one whose policy, evaluated exactly, earns most; what the rewards are: `test_best.py`."""
    flags = ["--updates", "30", "--reward.name", "game", "--ppo.learning_rate", "0.3"]
    train_agent(configs.load(None, [*FLAGS, *flags]), tmp_path / "run", say=quiet)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    found = {
        update: evaluate_agent(
            tmp_path / "run", ["ipd"], ["tit-for-tat"], protocols=["exact"], update=update
        )
        for update in kept
    }
    earned = {
        update: evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"][
            "tit-for-tat"
        ]["exact"]["rewards"]["game"]
        for update, evaluation in found.items()
    }
    best = max(earned, key=lambda update: earned[update])
    assert kept == [best, 26, 28, 30]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.best() == best
    measure = partial(evaluate_agent, tmp_path / "run", protocols=["exact"])
    assert measure(update="best") == measure(update=best)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six updates, with checkpoints of 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train_agent(configs.load(None, [*FLAGS, "--updates", "6"]), folder, say=quiet)


def refused(folder, message, config=None):
    """Resuming and evaluating say the same, and nothing is moved or written."""
    before = content(folder)
    with pytest.raises(UserError, match=message):
        train_agent(config or configs.load(folder / "config.yaml"), folder, True, quiet)
    assert content(folder) == before
    with pytest.raises(UserError, match=message):
        evaluate_agent(folder, ["ipd"], protocols=["exact"])
    assert content(folder) == before


def described(folder, change):
    """Changes what stands beside the newest state, as the version that wrote it would have."""
    path = folder / "checkpoints" / "6"
    saved, about = (json.loads((path / x / "metadata").read_text()) for x in ("config", "about"))
    change(saved, about)
    about["seal"] = seal_of(saved, about)
    (path / "config" / "metadata").write_text(json.dumps(saved))
    (path / "about" / "metadata").write_text(json.dumps(about))


def test_a_configuration_of_another_version_is_no_damage(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")

    def rename(saved, about):
        saved[""]["ppo"]["learning_speed"] = saved[""]["ppo"].pop("learning_rate")
        about["version"] = "9.0"

    described(folder, rename)
    refused(folder, "6 has a configuration that this version cannot read .*learning_speed.* 9.0,")


def test_arrays_of_another_version_are_no_damage(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    known = TabularPolicy.reference_parameters
    other = lambda self: known(self) | {"more": jnp.zeros(2)}
    kept = first_state._jit_first
    kept.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(TabularPolicy, "reference_parameters", other)
        refused(folder, r"6 holds other arrays than this version trains \(.*more\)")
    kept.cache_clear()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_what_the_system_refuses_to_read_is_no_damage(number, finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    read = Path.read_text

    def fail(path, *arguments, **named):
        if path.name == "metadata" and path.parts[-3] == "6":
            raise OSError(number, os.strerror(number), str(path))
        return read(path, *arguments, **named)

    with monkeypatch.context() as patch:
        for kind in {type(epath.Path(folder)), Path}:
            patch.setattr(kind, "read_text", fail)
        refused(folder, f"cannot read the checkpoint .*/6 .*{os.strerror(number)}")
    again = train_agent(configs.load(folder / "config.yaml"), folder, True, quiet)
    chex.assert_trees_all_equal(again.state, finished[1].state)


def test_what_the_storage_library_cannot_open_is_no_damage(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (path,) = (folder / "checkpoints" / "6" / "state" / "d").iterdir()
    whole = path.read_bytes()
    path.unlink()
    path.symlink_to(path)
    refused(folder, "cannot read the checkpoint .*/6 .*Too many levels of symbolic links")
    path.unlink()
    path.write_bytes(whole)
    evaluate_agent(folder, ["ipd"], protocols=["exact"])


@pytest.mark.parametrize("seed", range(4))
def test_any_change_beside_a_state_is_damage(seed, finished, tmp_path):
    """A flipped bit makes another key, another number or no JSON; all of it goes back one."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    random = np.random.default_rng(seed)
    path = folder / "checkpoints" / "6" / ("config", "about")[seed % 2] / "metadata"
    raw = bytearray(path.read_bytes())
    raw[random.integers(len(raw))] ^= 1 << int(random.integers(7))
    path.write_bytes(raw)
    said = []
    with Checkpoints(folder) as checkpoints:
        config = {"": configs.load(folder / "config.yaml")}
        like = jax.eval_shape(lambda: finished[1].state)
        state = checkpoints.restore(like, config, say=said.append)
    assert int(state.update) == 4
    assert re.search("6 is damaged .*; going back to update 4", said[0])
    again = train_agent(configs.load(folder / "config.yaml"), folder, True, quiet)
    assert (folder / "damaged" / "6").is_dir()
    chex.assert_trees_all_equal(again.state, finished[1].state)


def test_lost_metrics_are_noticed(tmp_path):
    folder = tmp_path / "run"
    config = configs.load(None, [*FLAGS, "--updates", "4"])
    train_agent(config, folder, say=quiet)
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(kept[:1] + kept[2:]))
    with pytest.raises(UserError, match="must have one line for each of the 4 updates"):
        train_agent(config, folder, resume=True, say=quiet)


@pytest.mark.slow
def test_one_of_two_processes_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMORAL_PATIENCE", "7")
    flags = [*FLAGS, "--updates", "100"]
    job = {"name": "run", "flags": flags, "folder": str(tmp_path / "run")}
    output = tmp_path / "found.npz"
    first, second = start_cluster(output, [job], 2, 1)
    while not (tmp_path / "run" / "checkpoints" / "10").is_dir():
        time.sleep(0.01)
        assert first.poll() is None
    second.kill(signal.SIGKILL)
    began = time.monotonic()
    done = first.finish(timeout=120)
    assert time.monotonic() - began < 100
    assert done.returncode != 0
    assert "another task died" in done.stderr, done
    assert second.finish().returncode == -signal.SIGKILL

    found = finish(start_cluster(output, [job | {"resume": True}], 2, 1), output)
    assert len(found["run||losses"]) < 100
    whole = train_agent(configs.load(None, flags), say=quiet)
    assert [r["update"] for r in records(tmp_path / "run")] == list(range(1, 101))
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(whole.trainable)])
    np.testing.assert_allclose(found["run||parameters"], expected, rtol=1e-5, atol=1e-6)
