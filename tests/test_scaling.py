"""The scaling model's account of what devices send, against sums by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

COLLECTIVES = """
import dataclasses, json, runpy, sys
import compiling
model = runpy.run_path(sys.argv[1])
prompter = model["Prompter"](model["load"]("gemma3-270m"), "plain", multiple=8)
config = dataclasses.replace(
    model["MODELS"]["Gemma 2 2B"], num_layers=2, global_layers=(False, True), vocab_size=262144
)
cases = {"tensor": (1, (1, 1, 8)), "fsdp": (1, (1, 8, 1)), "data": (8, (8, 1, 1))}
sent = {
    name: model["account"](config, sizes, members, prompter).sent
    for name, (members, sizes) in cases.items()
}
matrices = sum(i * o for i, o in config.every_linear)
print(json.dumps([sent, matrices, config.vocab_size * config.embed_dim, config.embed_dim]))
"""


@pytest.mark.usefixtures("real")
def test_devices_send_what_the_scaling_model_says():
    script = ROOT.parent / "scripts" / "scaling_model.py"
    quickly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COLLECTIVES, str(script)]
    environment = os.environ | quickly | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sent, matrices, embedding, width = json.loads(done.stdout.splitlines()[-1])
    assert all(set(kinds) <= {"all-reduce", "all-gather"} for kinds in sent.values())
    activation = 2 * 576 * width
    # Two layers of fourteen activations, and the embedded tokens.
    reduced = sent["tensor"]["all-reduce"] / (2 * 7 / 8)
    assert 29 * activation < reduced < 1.05 * 29 * activation
    gathered = sent["fsdp"]["all-gather"] / (7 / 8)
    assert 2 * (2 * matrices + embedding) < gathered < 1.05 * 2 * (2 * matrices + embedding)
    assert sum(sent["data"].values()) < 1e4  # metrics
