"""An evaluation kept in its file, with the picture of what the file then holds beside it."""

from pathlib import Path
from typing import Any

import pandas as pd

from jaxmoral.measuring.keeping import EVALUATION, keep
from jaxmoral.measuring.results import rows
from jaxmoral.reporting import figures


def keep_and_draw(evaluation: dict[str, Any], path: Path) -> Path:
    """Keeps an evaluation in a file, see `keeping.keep`, and returns the picture's place."""
    name = "regret.png" if path.name == EVALUATION else f"{path.stem}-regret.png"
    return figures.save(draw_regret(keep(evaluation, path)), path.with_name(name))


def draw_regret(evaluation: dict[str, Any]) -> figures.Drawn:
    """Exact regret in the first suite's conditions, against the first opponent."""
    everything = pd.DataFrame(rows(evaluation))
    chosen = everything["suite"] == next(iter(evaluation["suites"]))
    chosen &= (everything["protocol"] == "exact") & (
        everything["opponent"] == evaluation["opponents"][0]
    )
    found = everything[chosen]
    found = found.assign(agent=found["policy"].replace("base", figures.BASE))
    conditions = list(dict.fromkeys(found["condition"]))
    return figures.regrets(found, list(dict.fromkeys(found["agent"])), conditions)
