"""Many devices and many processes compute what one device does, and share their checkpoints."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_model
from clusters import finish, start, start_cluster
from on_mesh import evaluated, numbers
from run_files import quiet

from jaxmoral import load_members, train_population
from jaxmoral.config import MeshConfig
from jaxmoral.devices.mesh import choose_sizes, make_layout
from jaxmoral.errors import UserError

FLAGS = ["--updates", "3", "--env.episodes", "512", "--prompt.labels", "[X, Y]"]
FLAGS += ["--ppo.learning_rate", "1e-3", "--checkpoint_every", "2"]
# Linear layers that a mesh splits by what they make, by heads that are too few, by what they read.
FEW = ["--lora.targets", "[q, v, down]"]
MEMBERS = ["--seed", "[0, 1, 2, 3]", "--reward.name", "[game, utilitarian]"]
ALONE = {"fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2)}
TOGETHER = {"data": (8, 1, 1), "all": (2, 2, 2)}


def mesh_flags(sizes):
    axes = zip(("data", "fsdp", "tensor"), sizes, strict=True)
    return [part for axis, size in axes for part in (f"--mesh.{axis}", str(size))]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.write(folder, **tiny_model.SHALLOW)
    return ["--model.source", str(folder), *FLAGS, *FEW]


@pytest.fixture(scope="module")
def one_device(flags, tmp_path_factory):
    """What one device computes, alone and a population, and the run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    alone = train_population(load_members(None, flags), folder, say=quiet)
    many = train_population(load_members(None, [*flags, *MEMBERS]), say=quiet)
    firsts = [evaluated(next(iter(runs.values()))) for runs in (alone, many)]
    return folder, {name: numbers(trained) for name, trained in (alone | many).items()}, firsts


# What the tiny model has not: biases and an output head of its own; Gemma 4's two head sizes, keys
# that are values, experts; layers that share keys, embeddings beside the layers. All are adapted.
BIASED = {"family": "qwen2", "qk_norm": False, "post_norms": False, "activation": "silu"}
BIASED |= {"scaled_embedding": False, "tied": False, "biases": ("q", "k", "v")}
OTHERS = {"biased": BIASED, "sharing": tiny_model.SHARING, "experts": tiny_model.EXPERTS}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Flags for a few updates of models of other shapes."""
    made = {}
    for name, sizes in OTHERS.items():
        folder = tmp_path_factory.mktemp(name)
        tiny_model.write(folder, **tiny_model.SHALLOW | sizes)
        made[name] = ["--model.source", str(folder), *FLAGS, "--updates", "2"]
    return made


@pytest.fixture(scope="module")
def eight_devices(flags, others, tmp_path_factory):
    """The folder of the run on all axes, and what all of them computed."""
    folder = tmp_path_factory.mktemp("eight")
    jobs = [
        {
            "name": f"alone-{name}",
            "flags": [*flags, *mesh_flags(sizes)],
            "evaluate": name == "all",
            "folder": str(folder / "run") if name == "all" else None,
        }
        for name, sizes in ALONE.items()
    ]
    jobs += [
        {
            "name": f"together-{name}",
            "flags": [*flags, *MEMBERS, *mesh_flags(sizes)],
            "evaluate": name == "data",
        }
        for name, sizes in TOGETHER.items()
    ]
    jobs += [
        {"name": name, "flags": [*given, *mesh_flags(ALONE["all"])]}
        for name, given in others.items()
    ]
    return folder / "run", finish([start(folder / "found.npz", jobs, 8)], folder / "found.npz")


def assert_near(found, expected):
    """As a share of the whole."""
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def assert_close(found, expected, name, within=1e-5, spared=0.0):
    """As shares of each whole: Adam blows up the rounding of gradients that are zero but for it.

    The share `spared` of the values may be so far that the whole is 1e-4 of itself away.
    """
    for member, values in expected.items():
        for kind, value in values.items():
            gaps = np.sort(np.abs(found[f"{name}|{member}|{kind}"] - value))
            most = gaps[: len(gaps) - int(spared * len(gaps))]
            assert np.linalg.norm(most) <= within * np.linalg.norm(value), (name, kind)
            assert np.linalg.norm(gaps) <= 1e-4 * np.linalg.norm(value), (name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ALONE)
def test_an_agent_on_every_mesh(mesh, one_device, eight_devices):
    assert_close(eight_devices[1], {"": one_device[1][""]}, f"alone-{mesh}")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_shapes_are_split_too(name, others, eight_devices):
    trained = train_population(load_members(None, others[name]), say=quiet)[""]
    # A step of Adam moves them by a hundredth of themselves, also where a gradient is rounding.
    found = eight_devices[1]
    assert_close(found, {"": numbers(trained)}, name, within=3e-5, spared=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", TOGETHER)
def test_a_population_on_every_mesh(mesh, one_device, eight_devices):
    members = {name: values for name, values in one_device[1].items() if name}
    assert len(members) == 8
    assert_close(eight_devices[1], members, f"together-{mesh}")


@pytest.mark.slow
def test_an_evaluation_is_spread(one_device, eight_devices):
    for name, expected in zip(("alone-all", "together-data"), one_device[2], strict=True):
        found = eight_devices[1][f"{name}|evaluation"]
        assert_near(found, expected)
        assert len(found) == 3


def resumed(folder, flags, updates, copy):
    """Goes on from another machine's checkpoint of update 2, on this one device."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / str(updates))
    members = load_members(None, flags)
    return train_population(members, copy, resume=True, say=quiet)[""]


@pytest.mark.slow
def test_checkpoints_move_between_meshes(one_device, eight_devices, flags, tmp_path):
    here = numbers(resumed(eight_devices[0], flags, 3, tmp_path / "from-eight"))
    assert len(here["losses"]) == 1  # of update 3
    expected = one_device[1][""]
    assert_near(here["parameters"], expected["parameters"])

    copy = shutil.copytree(one_device[0], tmp_path / "from-one")
    shutil.rmtree(copy / "checkpoints" / "3")
    job = {"name": "on", "flags": flags, "folder": str(copy), "resume": True}
    found = finish([start(tmp_path / "on.npz", [job], 8)], tmp_path / "on.npz")
    assert_near(found["on||parameters"], expected["parameters"])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (4, 2)])
def test_processes_equal_one_device(processes, devices, one_device, flags, tmp_path):
    further = [*flags, "--lora.adapter", f"{one_device[0]}@3"]
    jobs = [
        {"name": "alone", "flags": flags, "folder": str(tmp_path / "run"), "evaluate": True},
        {"name": "together", "flags": [*flags, *MEMBERS], "evaluate": True},
        {"name": "further", "flags": further},
    ]
    # Of two processes each holds the whole adapter, of four a part.
    jobs = jobs[:2] if processes == 2 else [jobs[0], jobs[2]]
    output = tmp_path / "found.npz"
    found = finish(start_cluster(output, jobs, processes, devices), output)
    # Read back, they would wait for each other for ever.
    assert not found["reads programs"]
    alone = one_device[1][""]
    assert_close(found, {"": alone}, "alone")
    assert_near(found["alone|evaluation"], one_device[2][0])
    if processes == 2:
        assert_close(found, {k: v for k, v in one_device[1].items() if k}, "together")
        assert_near(found["together|evaluation"], one_device[2][1])
    else:
        expected = train_population(load_members(None, further), say=quiet)[""]
        assert_near(found["further||parameters"], numbers(expected)["parameters"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2, 3]
    # What several processes saved, one goes on with.
    here = numbers(resumed(tmp_path / "run", flags, 3, tmp_path / "again"))
    gap = np.linalg.norm(here["parameters"] - alone["parameters"])
    assert gap <= 1e-5 * np.linalg.norm(alone["parameters"])


class Chip:
    """What JAX knows of a chip of a TPU slice."""

    platform, core_on_chip, slice_index, client = "tpu", 0, 0, None

    def __init__(self, number, coords, kind):
        self.id, self.coords, self.device_kind = number, coords, kind
        self.process_index = number // 4

    def memory_stats(self):
        return {"bytes_limit": 32 * 2**30}


@pytest.mark.parametrize(
    ("kind", "slice_", "units", "max_tensor", "sizes"),
    [
        ("TPU v6 lite", (4, 4, 1), 1, 8, (2, 1, 8)),
        ("TPU v6 lite", (4, 4, 1), 8, 8, (8, 1, 2)),
        ("TPU v4", (2, 2, 4), 1, 8, (2, 1, 8)),
        ("TPU v5 lite", (2, 4, 1), 4, 8, (4, 1, 2)),
    ],
)
def test_a_slice_has_a_place_for_every_mesh_that_is_chosen(
    kind, slice_, units, max_tensor, sizes, monkeypatch
):
    """Whatever its physical axes are."""
    coords = itertools.product(*map(range, slice_))
    chips = [Chip(number, place, kind) for number, place in enumerate(coords)]
    monkeypatch.setattr(jax, "devices", lambda: chips)
    monkeypatch.setattr(jax, "local_devices", lambda: chips[:4])
    mesh = make_layout(MeshConfig(), units, max_tensor).mesh
    assert tuple(mesh.shape.values()) == sizes
    assert {chip.id for chip in mesh.devices.flat} == set(range(len(chips)))


def sizes(asked, num_devices, units=1, max_tensor=4, heavy=False):
    return choose_sizes(MeshConfig(**asked), num_devices, units, max_tensor, heavy)


def test_chosen_sizes():
    assert sizes({}, 1) == (1, 1, 1)
    assert sizes({}, 4) == (1, 1, 4)
    assert sizes({}, 8) == (2, 1, 4)  # heads are four: the rest splits the tree
    assert sizes({}, 8, heavy=True) == (1, 2, 4)
    assert sizes({}, 8, units=20) == (4, 1, 2)
    assert sizes({}, 8, units=20, heavy=True) == (1, 4, 2)
    assert sizes({}, 8, units=None) == (8, 1, 1)
    assert sizes({"tensor": 2}, 8, units=None) == (4, 1, 2)
    assert sizes({"fsdp": 2}, 8, units=8) == (4, 2, 1)
    assert sizes({"data": 2, "fsdp": 2, "tensor": 2}, 8) == (2, 2, 2)


@pytest.mark.parametrize(
    ("asked", "units", "message"),
    [
        ({"data": 3}, 1, "data 3 do not fit the 8 devices"),
        ({"data": 2, "fsdp": 1, "tensor": 2}, 1, "do not fit the 8 devices"),
        ({"data": 8}, 6, "data 8 do not divide the 6 members"),
        ({"tensor": 1}, 3, "leave 8 of every 8 devices without members"),
    ],
)
def test_impossible_meshes(asked, units, message):
    with pytest.raises(UserError, match=message):
        sizes(asked, 8, units)


def test_a_mesh_of_more_devices_than_there_are(flags):
    with pytest.raises(UserError, match=r"mesh: .* do not fit the 1 devices"):
        train_population(load_members(None, [*flags, "--mesh.data", "2"]), say=quiet)
    assert len(jax.devices()) == 1
