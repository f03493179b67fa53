"""Processes with several devices each, alone or as a cluster: what they run is in `on_mesh`."""

import json
import socket

import numpy as np
from processes import Running


def start(output, jobs, devices, environment=()):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return Running("on_mesh", output, json.dumps(jobs), environment=flags | dict(environment))


def start_cluster(output, jobs, processes, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        start(output, jobs, devices, names | {"JAX_PROCESS_ID": str(index)})
        for index in range(processes)
    ]


def finish(processes, output):
    for process in processes:
        done = process.finish()
        assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    with np.load(output) as found:
        return dict(found)
