"""Episodes in words, from the files that `jaxmoral.play` left in run folders."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from jaxmoral.errors import UserError
from jaxmoral.measuring.transcripts import EPISODES, read_episodes
from jaxmoral.reporting.series import Series, shown_names

MOST = 10  # episodes of a file that are shown


def transcript_blocks(series: Sequence[Series]) -> str:
    """Every run's episodes, as HTML that opens; empty if no folder holds any."""
    return "\n".join(
        block
        for name, one in zip(shown_names(series), series, strict=True)
        for run in one.runs
        for path in sorted(run.folder.glob(EPISODES))
        for block in _of_file(f"{name}, seed {run.config.seed}, {path.name}", path)
    )


def _of_file(title: str, path: Path) -> Iterator[str]:
    try:
        episodes = read_episodes(path)
    except UserError as error:
        yield f'<p class="note">Left out: {escape(str(error))}.</p>'
        return
    shown = "".join(f"<pre>{escape(text)}</pre>" for text in episodes[:MOST])
    left = len(episodes) - MOST
    more = f'<p class="note">and {left} more in {escape(path.name)}</p>' if left > 0 else ""
    yield f"<details><summary>{escape(title)}</summary>{shown}{more}</details>"
