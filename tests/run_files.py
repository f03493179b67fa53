"""What tests look at in run folders."""

from jaxmoral.learning import metrics


def quiet(line):
    """Says nothing of what training says."""


def records(folder, without=("seconds",)):
    """A run's metrics but for those that no two runs share."""
    return [{k: v for k, v in r.items() if k not in without} for r in metrics.read(folder)]


def content(folder):
    """Every path in a run folder but the lock, and what the files hold."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }
