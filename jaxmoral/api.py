"""What a notebook calls to train: the loop of `jaxmoral.learning.training`, and pictures of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from jaxmoral.config import ALONE, Config
from jaxmoral.devices.cluster import on_first
from jaxmoral.learning import training
from jaxmoral.learning.bucket import at_hand
from jaxmoral.learning.run_folder import Place, run_folders
from jaxmoral.learning.trackers import add_to_trackers
from jaxmoral.learning.trained import TrainedAgent


def train_agent(
    config: Config,
    output_dir: Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    *,
    extend: bool = False,
) -> TrainedAgent:
    """Trains an agent; see `jaxmoral.learning.training.fit_population` for arguments and errors.

    The run folder, which may be the URL of one in a bucket, gets a picture of what the agent did.

    >>> config = jaxmoral.parse({"model": {"source": "tabular"}, "updates": 2})
    >>> [record["update"] for record in jaxmoral.train_agent(config, say=lambda line: None).history]
    [1, 2]
    """
    return train_population({ALONE: config}, output_dir, resume, say, extend=extend)[ALONE]


def train_population(
    members: Mapping[str, Config],
    output_dir: Place | Path | str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    *,
    extend: bool = False,
) -> dict[str, TrainedAgent]:
    """Trains several agents at once on one frozen base; every run folder gets its picture.

    >>> flags = ["--model.source", "tabular", "--updates", "2", "--seed", "[0, 1]"]
    >>> list(jaxmoral.train_population(jaxmoral.load_members(None, flags), say=lambda line: None))
    ['seed=0', 'seed=1']
    """
    if output_dir is None:
        return training.fit_population(members, None, resume, say, extend=extend)
    with at_hand(output_dir, writes=True, say=say) as place:
        trained = training.fit_population(members, place, resume, say, extend=extend)
        if all(one.interrupted is None for one in trained.values()):
            on_first(lambda: _draw(place.folder, list(trained)))
    return trained


def _draw(home: Path, names: list[str]) -> None:
    """Pictures of a run, or of a population's members, also for their trackers."""
    from jaxmoral.measuring.runs import read_run
    from jaxmoral.reporting.canvas import save  # slow to import, and only needed here
    from jaxmoral.reporting.figures import training_types

    pictures: dict[str, Path] = {}
    made, folders = 0, run_folders(home, names)
    for folder in tqdm(folders.values(), "pictures", leave=False, disable=len(folders) == 1):
        run = read_run(folder)
        made = len(run.history)
        path = save(training_types({run.title: [run]}), folder / "action_types.png")
        pictures[str(path.relative_to(home).with_suffix(""))] = path
    add_to_trackers(home, made, {}, pictures)
