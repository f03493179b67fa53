"""What CPU devices that compute together need, so that none waits for the others for ever.

Virtual ones wait for each other in threads. XLA makes as many as there are devices. A device can be
in two collectives at once, one of a loop and one beside it, and each holds a thread until the other
devices have come. Where those have no thread left to come with, all wait.

Programs that are read back from JAX's compilation cache have lost the order of the collectives of a
loop and those beside it. Two processes that begin with different ones wait for each other.
"""

import os
import re

import jax
from jax.experimental.compilation_cache import compilation_cache

_VIRTUAL = re.compile(r"--xla_force_host_platform_device_count=(\d{1,4})\b")
_THREADS = 4  # a device
_NAME = "NPROC"  # where XLA looks for the size of its pools


def give_threads() -> None:
    """Asks for enough of them, unless somebody did; called before anything asks for devices."""
    counts = [int(count) for count in _VIRTUAL.findall(os.environ.get("XLA_FLAGS", ""))]
    if counts and counts[-1] > 1:
        os.environ.setdefault(_NAME, str(max(_THREADS * counts[-1], os.cpu_count() or 1)))


def compile_anew() -> None:
    """Reads no compiled programs from here on, if it is CPU devices that compute together."""
    devices = jax.devices()
    if len(devices) > 1 and devices[0].platform == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # which had asked the configuration once
