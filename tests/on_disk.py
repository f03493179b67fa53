"""Trains and resumes on a file system of its own, which only this process and its children see.

    python tests/on_disk.py FOLDER OPTIONS FLAGS

OPTIONS are those of a tmpfs ("size=150k", "ro") that is mounted on FOLDER/disk. The first training
writes what it says to FOLDER/said and its exit code to FOLDER/code; if it was told "ro" that is
all, otherwise the disk grows, the run is resumed there, and copied to FOLDER/resumed.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from jaxmoral import train

NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # of sched.h


def leave_the_others_mounts() -> None:
    """Becomes root of a user namespace with its own mounts, for which no rights are needed."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USERS | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(options: str, disk: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def training(*arguments, said: Path) -> int:
    """The exit code of a training in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["train", *map(str, arguments)]
        train.main()
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    folder, options, *flags = sys.argv[1:]
    folder = Path(folder)
    disk, run = folder / "disk", folder / "disk" / "run"
    disk.mkdir()
    leave_the_others_mounts()
    mount(options, disk)
    code = training("--output-dir", run, *flags, said=folder / "said")
    (folder / "code").write_text(str(code))
    if options != "ro":
        mount("remount,size=50m", disk)
        assert training("--output-dir", run, "--resume", said=folder / "resuming") == 0
        shutil.copytree(run, folder / "resumed")


if __name__ == "__main__":
    main()
