"""An evaluation kept in its file, with pictures of what the file then holds beside it."""

from pathlib import Path
from typing import Any

import pandas as pd

from jaxmoral import config as configs
from jaxmoral.learning.run_folder import is_run
from jaxmoral.learning.trackers import add_to_trackers
from jaxmoral.measuring.generalisation import SUITE
from jaxmoral.measuring.keeping import EVALUATION, keep
from jaxmoral.measuring.results import rows
from jaxmoral.reporting import figures
from jaxmoral.reporting.canvas import Drawn, save
from jaxmoral.reporting.generalisation import draw_generalisation, measured_rows
from jaxmoral.reporting.styles import BASE


def keep_and_draw(evaluation: dict[str, Any], path: Path) -> list[Path]:
    """Keeps an evaluation in a file, see `keeping.keep`, and returns the pictures' places.

    If the file is in a run's folder, the run's trackers get what was measured and the pictures.
    """
    kept = keep(evaluation, path)
    drawn = {"generalisation": _generalisation(kept)} if SUITE in kept["suites"] else {}
    if next(iter(kept["suites"])) != SUITE:  # whose conditions are too many for bars
        drawn = {"regret": draw_regret(kept)} | drawn
    start = "" if path.name == EVALUATION else f"{path.stem}-"
    pictures = [
        save(picture, path.with_name(f"{start}{name}.png")) for name, picture in drawn.items()
    ]
    if is_run(path.parent) and evaluation["update"] is not None:
        by_name = {picture.stem: picture for picture in pictures}
        add_to_trackers(path.parent, evaluation["update"], _numbers(evaluation), by_name)
    return pictures


def _numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """What was measured exactly, by names for trackers."""
    keys = "suite", "condition", "policy", "opponent", "metric"
    return {
        "/".join(["evaluation", *(str(row[key]) for key in keys if row[key])]): row["value"]
        for row in rows(evaluation)
        if row["protocol"] == "exact"
    }


def _generalisation(evaluation: dict[str, Any]) -> Drawn:
    title = configs.parse(evaluation["config"]).title
    return draw_generalisation(
        pd.DataFrame(measured_rows(evaluation)).assign(agent=title, title=title)
    )


def draw_regret(evaluation: dict[str, Any]) -> Drawn:
    """Exact regret in the first suite's conditions, against the first opponent."""
    everything = pd.DataFrame(rows(evaluation))
    chosen = everything["suite"] == next(iter(evaluation["suites"]))
    chosen &= (everything["protocol"] == "exact") & (
        everything["opponent"] == evaluation["opponents"][0]
    )
    found = everything[chosen]
    found = found.assign(agent=found["policy"].replace("base", BASE))
    conditions = list(dict.fromkeys(found["condition"]))
    drawn = figures.regrets(found, list(dict.fromkeys(found["agent"])), conditions)
    suite, opponent = next(iter(evaluation["suites"])), evaluation["opponents"][0]
    drawn[0].axes[-1].set_xlabel("policy")
    drawn[0].suptitle(f"suite {suite}, against {opponent}, exact", fontsize="medium")
    return drawn
