"""Threads for virtual CPU devices, which wait for each other in them.

XLA makes as many threads as there are devices. A device can be in two collectives at once, one of a
loop and one beside it, and each holds a thread until the other devices have come. Where those have
no thread left to come with, all wait for ever.
"""

import os
import re

_VIRTUAL = re.compile(r"--xla_force_host_platform_device_count=(\d{1,4})\b")
_THREADS = 4  # a device
_NAME = "NPROC"  # where XLA looks for the size of its pools


def give_threads() -> None:
    """Asks for enough of them, unless somebody did; called before anything asks for devices."""
    counts = [int(count) for count in _VIRTUAL.findall(os.environ.get("XLA_FLAGS", ""))]
    if counts and counts[-1] > 1:
        os.environ.setdefault(_NAME, str(max(_THREADS * counts[-1], os.cpu_count() or 1)))
