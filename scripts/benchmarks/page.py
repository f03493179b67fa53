"""Makes docs/benchmarks.md and its figure from the results the benchmarks wrote.

Its sections are in `page_against.py` and `page_costs.py`, the first of all in `overview.py`.

python scripts/benchmarks/page.py
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import overview
from page_against import (
    against_grpo,
    against_lm_eval,
    against_trl,
    against_tunix,
    learning,
    rounds,
)
from page_costs import cost, estimators, mixtures, populations, roofline, start, thinking, tree
from page_parts import section
from workers import RESULTS, ROOT, is_measured, read


def in_short() -> list[str]:
    return section(
        "In short",
        "Two cores of an Intel Xeon (Granite Rapids), which make 305 GFLOP/s, in float32; Gemma 3"
        " 270M unless it says otherwise. Rows with a star: an AMD EPYC of Zen 4, which makes 220;"
        " with a dagger: an older one without AVX-512, which makes 100. Commands are in"
        " `scripts/benchmarks/`.",
        ["figure", "measured", "command"],
        overview.rows(),
    )


def draw() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name, run in read("learning")["programs"].items():
        axes[0].plot(run["seconds"], run["reward"], marker=".", label=name)
    axes[0].set(xscale="log", xlabel="seconds", ylabel="reward of a round", title="Learning")
    axes[0].legend(
        frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
    )
    results = read("rounds")
    for name, title in results["names"].items():
        found = results["programs"][name]
        sizes = [n for n in results["lengths"] if n in found]
        axes[1].loglog(
            [int(n) for n in sizes], [found[n]["median"] for n in sizes], marker=".", label=title
        )
    axes[1].set(xlabel="episodes at once", ylabel="rounds a second", title="Environment alone")
    axes[1].legend(frameon=False, fontsize=8)
    for name, curve in read("cost")["curves"].items():
        sizes = list(curve["seconds"])
        first = curve["seconds"][sizes[0]]["median"]
        axes[2].loglog(
            [int(n) / int(sizes[0]) for n in sizes],
            [curve["seconds"][n]["median"] / first for n in sizes],
            marker=".",
            label=name,
        )
    axes[2].set(xlabel="times the smallest", ylabel="times its update", title="Cost of an update")
    axes[2].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "benchmarks.png", dpi=110)


_LATER = (against_grpo, against_lm_eval, thinking)  # that have no section before they are measured


def page() -> str:
    """The text of docs/benchmarks.md."""
    parts = [in_short, against_trl, against_grpo, against_lm_eval, against_tunix, learning, rounds]
    parts += [estimators, cost, mixtures, populations, tree, thinking, start, roofline]
    lines = [
        "# Benchmarks",
        "",
        "Unless it says otherwise a figure comes from the command above it, on the machine named"
        " below it; programs that are compared take turns in one process tree, and seconds are"
        " medians with their range."
        " Others' programs are installed by the benchmark in environments of their own."
        " Results are in `docs/benchmarks/*.json`; `python scripts/benchmarks/page.py` makes this"
        " page.",
        "",
        "![Learning, rounds a second, cost of an update](benchmarks/benchmarks.png)",
        "",
    ]
    for part in parts:
        lines += part() if part not in _LATER or is_measured(part.__name__) else []
    return "\n".join(lines)


def main() -> None:
    (ROOT / "docs" / "benchmarks.md").write_text(page())
    draw()


if __name__ == "__main__":
    main()
