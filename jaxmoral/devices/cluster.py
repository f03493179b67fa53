"""Several processes as one program: started where a cluster is found, one of them does the talking.

Every host runs the same command. JAX's own runtime connects them. It is asked to find the others by
itself under Slurm and Open MPI, where a TPU names several workers, and with JAXMORAL_CLUSTER=auto;
anywhere else JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
JAX_PROCESS_ID say who they are. After JAXMORAL_PATIENCE seconds a process that died, or left early,
ends the others too.
"""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmoral.devices.virtual import give_threads
from jaxmoral.errors import UserError, check_whole

PATIENCE = "30"


def start() -> None:
    """Joins the cluster if there is one; called before anything asks for devices.

    Raises:
      UserError: the environment names a cluster that cannot be joined.
    """
    give_threads()
    environment = os.environ.get
    if environment("JAX_COORDINATOR_ADDRESS"):
        numbers = [environment("JAX_NUM_PROCESSES", ""), environment("JAX_PROCESS_ID", "")]
        if not all(number.isdecimal() for number in numbers):
            raise UserError(
                "JAX_COORDINATOR_ADDRESS: needs JAX_NUM_PROCESSES and JAX_PROCESS_ID too, whole"
                f" numbers; got {numbers[0]!r} and {numbers[1]!r}"
            )
        _join(environment("JAX_COORDINATOR_ADDRESS"), int(numbers[0]), int(numbers[1]))
    elif _detected():
        _join()


def _detected() -> bool:
    tasks = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if os.environ.get("JAXMORAL_CLUSTER") == "auto":
        return True
    several = any(number.isdecimal() and int(number) > 1 for number in tasks)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _join(
    address: str | None = None, num_processes: int | None = None, index: int | None = None
) -> None:
    name = "JAXMORAL_PATIENCE"
    given = os.environ.get(name, PATIENCE)
    patience = check_whole(name, int(given) if given.isdecimal() else given, 1, 10**6)
    jax.config.update("jax_enable_preemption_service", False)  # the training loop listens itself
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            index,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=patience,
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"cannot join the other processes ({line})") from None


def is_first() -> bool:
    """Whether this process writes what exists once: messages, metrics, configurations."""
    return jax.process_index() == 0


def on_first(action: Callable[[], None]) -> None:
    """Runs an action in the first process; the others wait for it, and stop if it failed.

    Raises:
      UserError: as the action, or because it failed elsewhere.
    """
    if jax.process_count() == 1:
        action()
        return
    failure: Exception | None = None
    if is_first():
        try:
            action()
        except (UserError, OSError) as error:
            failure = error
    failed = multihost_utils.broadcast_one_to_all(np.array(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise UserError("the first process stopped; its message says why")


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.array(number, np.int32))))
