"""What an update costs on accelerators, on paper: memory from compiled programs, time from counts.

    python scripts/scaling_model.py > docs/scaling.md

Memory is XLA's own account of the update, compiled for eight virtual devices from shapes alone.
Time is counted: useful FLOPs, bytes read and written, and what the mesh has to communicate, each
divided by the chip's published peak.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import functools
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxmoral.config import parse
from jaxmoral.devices.mesh import AXES, Layout, shardings
from jaxmoral.language.prompts import Condition, Presentation
from jaxmoral.learning.collect import Setup
from jaxmoral.learning.environments import environment
from jaxmoral.learning.language_policy import LanguagePolicy
from jaxmoral.learning.population import (
    over_members,
    stack_environments,
    stack_members,
    state_prefix,
)
from jaxmoral.learning.ppo import make_update
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.state import UpdateInputs, adjustable, init_state, make_optimiser
from jaxmoral.models.config import DecoderConfig
from jaxmoral.models.load import load
from jaxmoral.models.lora import Lora
from jaxmoral.models.model import Decoder
from jaxmoral.models.sizes import num_adapter_parameters, weight_bytes
from jaxmoral.world.games import get_game

MODELS = runpy.run_path(str(Path(__file__).parent / "size_table.py"))["MODELS"]
GIB = 2**30
RANK = 64
NODES, KEYS, ROWS = 572, 192, 48
EFFICIENCY = 0.5  # of the peak that large products are taken to reach

SEVERAL = ("Gemma 2 2B", "Gemma 2 9B", "Gemma 2 27B")  # on several meshes
CASES = [
    (1, (1, 1, 1)),
    (1, (1, 1, 8)),
    (1, (1, 8, 1)),
    (1, (2, 2, 2)),
    (20, (1, 1, 1)),
    (20, (4, 1, 1)),
    (20, (4, 1, 2)),
    (20, (1, 4, 2)),
]


class Chip(NamedTuple):
    """Published peaks of one chip: FLOP/s in bfloat16, bytes/s of memory and of links, bytes."""

    flops: float
    memory_rate: float
    link_rate: float
    memory: float


CHIPS = {
    "H100": Chip(989e12, 3.35e12, 450e9, 80e9),
    "v4": Chip(275e12, 1.2e12, 300e9, 32e9),
    "v5e": Chip(197e12, 0.82e12, 200e9, 16e9),
    "v5p": Chip(459e12, 2.77e12, 600e9, 95e9),
    "v6e": Chip(918e12, 1.64e12, 448e9, 32e9),
}


def lowered(config: DecoderConfig, sizes: tuple[int, int, int], members: int, prompter: Prompter):
    """The update of an agent or a population, lowered from shapes alone."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    layout = Layout(mesh, side_by_side=members > 1)
    definition, weights = Decoder.abstract(config, layout)
    lora = Lora(RANK, 32.0, 0.0, config.linear_names)
    policy = LanguagePolicy(config, definition, lora, layout=layout)
    experiment = parse({"model": {"source": "tabular"}})
    condition = Condition(get_game("ipd"), Presentation())
    update = make_update(
        Setup(
            policy,
            experiment.ppo,
            remembers=condition.presentation.memory_key(condition.game),
            num_updates=1000,
            num_episodes=4096,
            num_rounds=5,
        )
    )
    optimiser = make_optimiser(experiment.ppo, 1000)
    init = functools.partial(
        init_state, policy=policy, optimiser=optimiser, kl_coef=jnp.float32(0.02), num_players=1
    )
    keys = jax.random.split(jax.random.key(0), members)
    several = members > 1
    if several:
        varying = {"key", "environment", "settings"}
        update = over_members(update, varying, layout=layout)
        init = jax.vmap(init, out_axes=state_prefix(None, 0))
    state = jax.eval_shape(init, keys if several else keys[0])

    def shaped(tree, where=None):
        where = where or jax.tree.map(lambda _: layout.sharding(), tree)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
        )

    def per_member(tree):
        lead = layout.sharding(layout.lead_axes) if several else layout.sharding()
        return shaped(tree, jax.tree.map(lambda _: lead, tree))

    state_where = shardings(state, layout, state_prefix(False, several))
    prompts = prompter.pack([[condition]])
    if config.per_layer_dim:  # what layers would look up
        size = config.num_layers * config.per_layer_dim
        prompts = prompts._replace(beside=np.zeros((*prompts.tree.tokens.shape, size), np.float32))
    inputs = UpdateInputs(
        key=per_member(keys if several else keys[0]),
        frozen=shaped(weights, shardings(weights, layout)),
        prompts=shaped(prompts),
        reference=shaped(jax.ShapeDtypeStruct((1, 16, 3), jnp.float32)),
        environment=per_member(stack_environments([environment(experiment)] * members)),
        settings=per_member(stack_members([adjustable(experiment.ppo)] * members)),
    )
    everywhere = layout.sharding()
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(state_where, everywhere))
    return jitted.lower(shaped(state, state_where), inputs)


class Account(NamedTuple):
    """The compiled float32 update, per device: bytes of arguments and of what is temporary, FLOPs
    times the number of devices against those before it was split, and bytes sent by kind of
    collective."""

    held: float
    made: float
    repeated: float
    sent: dict[str, float]


@functools.cache
def account(
    config: DecoderConfig, sizes: tuple[int, int, int], members: int, prompter: Prompter
) -> Account:
    whole = lowered(config, sizes, members, prompter)
    compiled = whole.compile()
    found = compiled.memory_analysis()
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    flops = [program.cost_analysis()["flops"] for program in (compiled, whole)]
    return Account(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes + made,
        flops[0] * math.prod(sizes) / flops[1],
        sent(compiled.as_text(), config.num_layers),
    )


class Counts(NamedTuple):
    """Of one device and update: FLOPs, bytes of memory traffic, bytes sent over links."""

    flops: float
    traffic: float
    sent: float


def count(config: DecoderConfig, sizes: tuple[int, int, int], members: int) -> tuple[float, float]:
    """FLOPs and bytes of memory traffic of an update; see the assumptions on the page."""
    data, fsdp, tensor = sizes
    places = data * fsdp
    matrices = sum(i * o for i, o in config.every_linear)
    embedding = config.vocab_size * config.embed_dim
    lora = Lora(RANK, 32.0, 0.0, config.linear_names)
    adapter = num_adapter_parameters(config, lora)
    width = sum(config.every_width)
    attention = 3 * 4 * NODES * KEYS * width
    agent = 4 * NODES * matrices + 6 * NODES * adapter + 4 * ROWS * embedding + attention
    share = members / places  # a single agent's nodes are split like members
    outputs = sum(o for _, o in config.every_linear) + width + config.num_layers * config.embed_dim
    kept = 2 * NODES * outputs  # bytes, written once and read twice
    weights = 2 * 2 * (matrices + embedding) / tensor  # bytes, once forward and once backward
    state = 4 * 7 * adapter  # parameters, gradient and two moments: read, and written but one
    heads = 4 * 4 * ROWS * config.vocab_size
    return agent * share / tensor, weights + (3 * kept + state + heads) * share / tensor


_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)\(")
_SHAPE = re.compile(r"(f32|s32|u32|pred)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:mesh\[(.*?)\].*? \{(.*?)\}|\[\d+,(\d+)\]|\{\{([\d,]+)\})")


def sent(program: str, num_layers: int) -> dict[str, float]:
    """Bytes that a device sends in a compiled program, by kind of collective.

    As rings: an all-reduce of n devices sends 2 (n - 1) / n of its size, the others (n - 1) / n,
    but a permutation all of it. What stands in a loop is done once a layer. Counted as bfloat16:
    half of what it is here.
    """
    found: dict[str, float] = {}
    for line in program.splitlines():
        if not (match := _COLLECTIVE.search(line)):
            continue
        shapes, kind = match.groups()
        numbers = sum(
            math.prod(int(size) for size in dims.split(",") if size)
            for _, dims in _SHAPE.findall(shapes)
        )
        times = num_layers if "while/body" in line else 1
        rest = 1.0 if kind == "collective-permute" else 1 - 1 / _group_size(line)
        twice = 2 if kind == "all-reduce" else 1
        found[kind] = found.get(kind, 0) + 2 * numbers * times * twice * rest
    return found


def _group_size(line: str) -> int:
    """How many devices take part in a collective."""
    match = _GROUPS.search(line)
    assert match is not None, line
    mesh, names, width, members = match.groups()
    if mesh:
        axes = dict(part.split("=") for part in mesh.split(","))
        # A part of an axis says its own size, after that of what is before it: name:(4)2.
        size = lambda name: name.rpartition(")")[2] if ":(" in name else axes[name]
        return math.prod(int(size(name)) for name in names.split(","))
    return int(width) if width else members.count(",") + 1


def time_of(counts: Counts, chip: Chip) -> tuple[float, str]:
    """Seconds of an update, nothing overlapped but compute and memory; and what dominates."""
    parts = {
        "compute": counts.flops / (EFFICIENCY * chip.flops),
        "memory": counts.traffic / chip.memory_rate,
        "links": counts.sent / chip.link_rate,
    }
    total = max(parts["compute"], parts["memory"]) + parts["links"]
    return total, max(parts, key=lambda name: parts[name])


def measured() -> int:
    """What real updates of the 270M hold and add at their peak, in bytes, in a fresh process."""
    code = f"""
import ctypes, pathlib, re, jax, jaxmoral
from jaxmoral.learning.agent import make_agent
from jaxmoral.learning.experiment import compile_update
from jaxmoral.learning.resolve import resolve

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

config = resolve(jaxmoral.parse({{"lora": {{"rank": {RANK}}}}}))
agent = make_agent(config)
state, step = compile_update([(config, agent)])
held = sum(leaf.nbytes for leaf in jax.tree.leaves((agent.frozen, state)))
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading and compiling
before = status("VmRSS")
for update in range(3):
    state, metrics = step(state, update)
    jax.block_until_ready(state)
print(held + 1024 * (status("VmHWM") - before))
"""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def print_eighths(prompter: Prompter) -> None:
    """The account of every other model, its layers split over eight devices."""
    print(
        "\nThe same of one member of the other models with every layer split over eight devices"
        " (1, 1, 8), and the chips of which eight hold it.\n"
    )
    print("| model | arguments | temporary | total | eight of |")
    print("|---" * 5 + "|")
    for name, config in MODELS.items():
        if name in SEVERAL:
            continue
        held, made, _, _ = account(config, (1, 1, 8), 1, prompter)
        held -= weight_bytes(config, 2) / 8
        enough = ", ".join(chip for chip in CHIPS if held + made < CHIPS[chip].memory)
        cells = " | ".join(f"{part / GIB:.2f}" for part in (held, made, held + made))
        print(f"| {name} | {cells} | {enough or 'none'} |", flush=True)


def print_memory(prompter: Prompter, small: DecoderConfig) -> None:
    print("## Memory of an update\n")
    print(
        "XLA's account of the compiled update in GiB per device: 16 prompts, LoRA rank 64 on every"
        " linear layer. Compiled in float32, because XLA for CPUs copies bfloat16 weights to"
        " float32; weights are then counted in bfloat16, and what is temporary as it is, which for"
        " bfloat16 activations is an upper bound. FLOPs are those of all devices against the"
        " same program's before it is split; XLA counts a scanned block once.\n"
    )
    print("| model | members | data, fsdp, tensor | arguments | temporary | total | FLOPs |")
    print("|---" * 7 + "|")
    for name in SEVERAL:
        for members, sizes in CASES:
            held, made, repeated, _ = account(MODELS[name], sizes, members, prompter)
            held -= weight_bytes(MODELS[name], 2) / (sizes[1] * sizes[2])
            shown = ", ".join(map(str, sizes))
            print(
                f"| {name} | {members} | {shown} | {held / GIB:.2f} | {made / GIB:.2f} |"
                f" {(held + made) / GIB:.2f} | {repeated:.2f} |",
                flush=True,
            )
    print_eighths(prompter)
    held, made, _, _ = account(small, (1, 1, 1), 1, prompter)
    real = measured()
    print(
        f"\nThe account of Gemma 3 270M in float32 on one device is {(held + made) / GIB:.2f} GiB;"
        f" real updates took {real / GIB:.2f} GiB: {(held + made) / real - 1:+.0%}.\n"
    )


def main() -> None:
    model = load("gemma3-270m")
    print("# Scaling, on paper\n")
    print("Written by `python scripts/scaling_model.py`. No accelerator was used.\n")
    prompter = Prompter(model, "plain", multiple=8)
    print_memory(prompter, model.config)
    print_links(prompter)
    print_time(prompter)


def print_links(prompter: Prompter) -> None:
    print("## What is sent\n")
    print(
        "MB that a device sends in an update of Gemma 2 2B, by the collectives of the compiled"
        " program. Tensor parallelism adds up partial sums: in every layer four activations"
        " forward (what o and down make) and ten backward (the gradients of what enters q, k, v,"
        " gate and up), base and adapter apart. With fsdp the frozen weights are gathered, each"
        " layer twice and the embedding once; a single agent, whose nodes are split, gathers keys"
        " and values and adds up the adapter's gradients besides. Members of a population share"
        " nothing but their metrics.\n"
    )
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    print(f"| members | data, fsdp, tensor | {' | '.join(kinds)} |")
    print("|---" * (2 + len(kinds)) + "|")
    for members, sizes in CASES:
        links = account(MODELS["Gemma 2 2B"], sizes, members, prompter).sent
        shown = " | ".join(f"{links.get(kind, 0) / 1e6:.1f}" for kind in kinds)
        print(f"| {members} | {', '.join(map(str, sizes))} | {shown} |", flush=True)
    print()


def print_time(prompter: Prompter) -> None:
    print("## Time of an update\n")
    print(
        f"Products are taken to reach {EFFICIENCY:.0%} of the peak (on two CPU cores they reach"
        " [44 to 50 %](benchmarks.md)); compute overlaps with memory traffic, links overlap with"
        " nothing. Weights are read twice, what is kept for the backward pass is"
        " written once and read twice. What is sent is what the compiled programs above send,"
        " counted as bfloat16.\n"
    )
    print(
        "| model | members | chips | data, fsdp, tensor | TFLOP a chip | GB of memory | GB sent |"
        " seconds | dominated by | 1,000 updates |"
    )
    print("|---" * 10 + "|")
    cases = [
        (1, "H100", (1, 1, 1)),
        (20, "H100", (1, 1, 1)),
        (20, "v4", (4, 1, 1)),
        (20, "v5e", (4, 1, 2)),
        (20, "v5e", (1, 4, 2)),
        (20, "v5p", (4, 1, 1)),
        (20, "v6e", (4, 1, 2)),
        (1, "v5e", (1, 1, 8)),
        (1, "v5e", (1, 8, 1)),
    ]
    for name in SEVERAL:
        for members, chip, sizes in cases:
            links = account(MODELS[name], sizes, members, prompter).sent
            counts = Counts(*count(MODELS[name], sizes, members), sum(links.values()))
            seconds, dominant = time_of(counts, CHIPS[chip])
            weights = weight_bytes(MODELS[name], 2) / (sizes[1] * sizes[2])
            if weights > CHIPS[chip].memory:
                continue
            shown = ", ".join(map(str, sizes))
            minutes = seconds * 1000 / 60
            print(
                f"| {name} | {members} | {int(np.prod(sizes))} {chip} | {shown} |"
                f" {counts.flops / 1e12:.2f} | {counts.traffic / 1e9:.1f} |"
                f" {counts.sent / 1e9:.2f} | {seconds:.3f} | {dominant} | {minutes:.1f} min |"
            )


if __name__ == "__main__":
    main()
