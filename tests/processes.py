"""Processes of their own for tests: each is forked from a server that has imported everything.

An interpreter that imports JAX, Orbax and transformers takes seconds to start; a fork of one takes
none. What a test sees is a process as the shell starts it: its own output, exit code and signals,
the environment of the test, the functions that run at its end. It compiles as the test does.
"""

import atexit
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from compiling import compile_quickly, compiles_quickly

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *(f"jaxmoral.{name}" for name in ("train", "evaluate", "export", "chat", "tournament")),
        *("jaxmoral.report", "jaxmoral.sweep", "jaxmoral.api", "tensorboardX.record_writer"),
        *("jaxmoral.measuring.opened", "jaxmoral.measuring.tournaments", "transformers"),
        *("jaxmoral.models.merged", "jaxmoral.reporting.page", "jaxmoral.reporting.evaluated"),
        "transformers.models.gemma3.configuration_gemma3",  # which brings torch along
    ]
)


class Done(NamedTuple):
    """How a process ended, as `subprocess.run` has it."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process that runs `main()` of a module with these arguments."""

    def __init__(self, module: str, *arguments, environment=(), text: str = ""):
        self._folder = tempfile.TemporaryDirectory()
        files = [Path(self._folder.name) / name for name in ("in", "out", "err")]
        files[0].write_text(text)
        self._files = files
        given = os.environ | dict(environment)
        told = module, [*map(str, arguments)], given, [*map(str, files)], compiles_quickly()
        self._process = FORKS.Process(target=_run, args=told)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 300) -> Done:
        """Waits for its end; one that takes longer is killed, and the test fails."""
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        said = [path.read_text() for path in self._files[1:]]
        self._folder.cleanup()
        assert not late, f"no end after {timeout} s: {said}"
        return Done(self._process.exitcode, *said)


def command(module: str, *arguments, text: str = "") -> Done:
    """A command of the package: `python -m jaxmoral.MODULE ARGUMENTS`, reading this text."""
    return Running(f"jaxmoral.{module}", *arguments, text=text).finish()


def _run(
    module: str, arguments: list[str], environment: dict[str, str], files: list[str], quickly: bool
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    compile_quickly(quickly)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    for number, path in enumerate(files):
        flags = os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0, closefd=False)  # which multiprocessing had closed
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    main = importlib.import_module(module)
    sys.argv = [main.__file__, *arguments]
    try:
        main.main()
    finally:
        atexit._run_exitfuncs()
