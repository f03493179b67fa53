"""A picture of two groups of runs beside each other: differences with their intervals."""

import matplotlib.pyplot as plt
import numpy as np

from jaxmoral.measuring.comparing import MEASURES, Comparison
from jaxmoral.reporting.canvas import Drawn
from jaxmoral.reporting.styles import INK, MARK

_LEAST = 0.01  # of a difference, beside which nothing looks large


def differences(found: Comparison, suite: str, names: tuple[str, str]) -> Drawn:
    """Differences by measure, a line a condition and opponent; bars are 95 % intervals."""
    rows = found.table[found.table["suite"] == suite]
    groups = dict(list(rows.groupby("metric", sort=False)))
    shown = [groups[name] for name in MEASURES if name in groups]
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(1.5 * len(shown) + 2.5, 0.3 * max(map(len, shown)) + 1.6),
        squeeze=False,
        layout="constrained",
    )
    before: list[str] = []
    for axis, group in zip(axes[0], shown, strict=True):
        places = np.arange(len(group))[::-1]
        axis.axvline(0, **MARK)
        if not found.few:
            axis.hlines(places, group["low"], group["high"], color=INK, linewidth=1.5)
        axis.plot(group["difference"], places, "o", color=INK, markersize=4)
        where = [
            f"{row.condition}, {row.opponent}" if row.opponent else row.condition
            for row in group.itertuples()
        ]
        axis.set_yticks(places, where if where != before else [], fontsize=7)
        axis.set_title(MEASURES[group["metric"].iloc[0]].replace(", ", ",\n"), fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        ends = np.append(group[["difference", "low", "high"]].to_numpy().ravel(), 0.0)
        least, most = np.nanmin(ends), np.nanmax(ends)
        spare = max(0.15 * (most - least), _LEAST)
        axis.set_xlim(least - spare, most + spare)
        axis.margins(y=0.08)
        before = where
    interval = "" if found.few else ", with its 95 % interval"
    figure.supxlabel(f"difference{interval}; dashed: no difference", fontsize=8)
    figure.suptitle(f"{names[0]} minus {names[1]}, suite {suite}", fontsize=9)
    return figure, {}
