"""Makes docs/benchmarks.md and its figure from the results the benchmarks wrote.

python scripts/benchmarks/page.py
"""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import overview
from overview import LEVEL, best_tunix, learned
from workers import RESULTS, ROOT, is_measured, read


def ranged(seconds: dict[str, float], digits: int = 2) -> str:
    middle, low, high = (f"{seconds[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def versions(programs: dict[str, Any]) -> str:
    found: dict[str, str] = {}
    for program in programs.values():
        found |= program["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def section(
    title: str, text: str, head: list[str], rows: list[list[str]], *after: str
) -> list[str]:
    lines = [f"## {title}", "", text, "", *table(head, rows), ""]
    for line in after:
        lines += [line, ""]
    return lines


def machine(results: dict[str, Any]) -> str:
    about = results["machine"]
    tunables = f", {about['glibc_tunables']}" if about.get("glibc_tunables") else ""
    return f"{about['processor']}, {about['threads']} threads, Python {about['python']}{tunables}"


def in_short() -> list[str]:
    return section(
        "In short",
        "Two cores of an AMD EPYC in float32, Gemma 3 270M unless it says otherwise: rows with a"
        " star on Zen 5, which makes 480 GFLOP/s, the others on Zen 4, which makes 220. Commands"
        " are in `scripts/benchmarks/`.",
        ["figure", "measured", "command"],
        overview.rows(),
    )


def against_trl() -> list[str]:
    results = read("against_trl")
    programs = results["programs"]
    base = programs["TRL, 1 episode"]
    rows = []
    for name, one in programs.items():
        faster = base["seconds_per_update"]["median"] / one["seconds_per_update"]["median"]
        more = one["rounds_per_second"] / base["rounds_per_second"]
        rows.append(
            [
                name,
                ranged(one["seconds_per_update"]),
                f"{faster:.1f}x",
                f"{one['rounds_per_second']:,.2f}",
                f"{more:,.0f}x",
                f"{one['peak_gib']:.1f}",
                f"{one['peak_gib'] / base['peak_gib']:.2f}",
            ]
        )
    head = [
        "program",
        "seconds an update",
        "faster",
        "rounds a second",
        "more",
        "peak GiB",
        "share",
    ]
    return section(
        "Against the paper's loop on TRL",
        "`python scripts/benchmarks/against_trl.py`: Gemma 3 270M with the same weights (checked by"
        " their log-probabilities), prompts, rewards and LoRA of rank 64 on every linear layer;"
        " episodes of five rounds. TRL makes the paper's one optimiser step of four passes an"
        " episode.",
        head,
        rows,
        f"{machine(results)}; {versions(programs)}.",
    )


def against_grpo() -> list[str]:
    results = read("against_grpo")
    programs = results["programs"]
    base = next(iter(programs.values()))
    rows = [
        [
            name,
            ranged(one["seconds_per_update"], 1),
            f"{base['seconds_per_update']['median'] / one['seconds_per_update']['median']:.1f}x",
            f"{one['peak_gib']:.1f}",
            f"{one['peak_gib'] / base['peak_gib']:.2f}",
        ]
        for name, one in programs.items()
    ]
    return section(
        "Thinking, against TRL's GRPOTrainer",
        "`python scripts/benchmarks/against_grpo.py`: Gemma 3 270M with the same weights (checked"
        " by their log-probabilities), the quickstart's sixteen prompts, eight generations of 32"
        " tokens for each, a KL to the untrained model, LoRA of rank 64 on every linear layer, one"
        " optimiser step. TRL writes thought and answer in these tokens, and takes the gradient of"
        " eight generations at a time; ours writes a thought, and the answer after it is exact.",
        ["program", "seconds an update", "faster", "peak GiB", "share"],
        rows,
        f"{machine(results)}; {versions(programs)}.",
    )


def against_tunix() -> list[str]:
    results = read("against_tunix")
    head = ["program", "seconds an update", "samples a second", "more", "start to first update, s"]
    head += ["of it compiling", "share", "peak GiB"]
    programs = results["programs"]
    return section(
        "Against Tunix",
        "`python scripts/benchmarks/against_tunix.py`: first a Gemma 3 of four layers (width 128,"
        " vocabulary 1,024) with random weights, sixteen prompts of 186 tokens, answers of four"
        " tokens; then Gemma 3 270M, sixteen prompts of 148 tokens, answers of two. LoRA of rank 8,"
        " one PPO step an update. Tunix reads a prompt for every sample; larger"
        " batches than these were not tried. More and share are against the Tunix that makes most"
        " samples a second.",
        head,
        tunix_rows("four layers", programs) + tunix_rows("270M", results["programs_270m"]),
        f"{machine(results)}; {versions(programs)}.",
    )


def tunix_rows(model: str, programs: dict[str, Any]) -> list[list[str]]:
    best = best_tunix(programs)
    rows = []
    for name, one in programs.items():
        rows.append(
            [
                f"{model}: {name}",
                ranged(one["seconds_per_update"], 3),
                f"{one['samples_per_second']:,.1f}",
                f"{one['samples_per_second'] / best['samples_per_second']:,.0f}x",
                f"{one['start_to_first_update']:.1f}",
                f"{one['compile']:.1f}",
                f"{one['compile'] / best['compile']:.2f}",
                f"{one['peak_gib']:.1f}",
            ]
        )
    return rows


def rounds() -> list[str]:
    results = read("rounds")
    sizes = list(results["lengths"])
    rows = []
    for name, title in results["names"].items():
        found = results["programs"][name]
        cells = [f"{found[n]['median']:.2g}" if n in found else "" for n in sizes]
        rows.append([title, *cells])
    return section(
        "The environment alone",
        "`python scripts/benchmarks/rounds.py`: rounds a second of the iterated prisoner's dilemma"
        " by the number of episodes at once, the median of three turns.",
        ["program", *(f"{int(n):,}" for n in sizes)],
        rows,
        f"{machine(results)}; {versions(results['programs'])}.",
    )


def roofline() -> list[str]:
    results = read("roofline")
    rows = []
    for name, stage in results["stages"].items():
        work = [f"{stage['gflop']:.1f}", f"{stage['gbytes']:.2f}"] if "gflop" in stage else ["", ""]
        share = f"{stage['share_of_roofline']:.0%}" if "gflop" in stage else ""
        shown = [f"{stage['seconds'] * 1e3:.1f}", f"{stage['share_of_update']:.1%}"]
        rows.append([name, *shown, *work, share])
    useful = results["useful_rate"]
    return section(
        "The machine's limit",
        "`python scripts/benchmarks/roofline.py --profile FOLDER` (which leaves a trace for"
        " https://ui.perfetto.dev there), at the quickstart's setting. The limit of a stage is the"
        " larger of its useful FLOPs at the matrix-product rate and its least bytes at the"
        " bandwidth, both measured in the same process:"
        f" {results['matmul_gflops']:.0f} GFLOP/s and {results['bandwidth_gbytes']:.1f} GB/s.",
        ["stage", "ms", "of an update", "GFLOP", "GB", "of the limit"],
        rows,
        f"An update takes {ranged(results['update_seconds'])} s; the stages account for"
        f" {results['accounted']:.0%} of it. Useful FLOPs at {useful['update']:.0%} of the"
        f" matrix-product rate, in the forward pass at {useful['forward']:.0%}. Besides: loading"
        f" {results['load_seconds']:.1f} s, compiling {results['compile_seconds']:.1f} s, a"
        f" checkpoint {results['checkpoint_seconds']:.2f} s.",
        "Large products run at nine tenths of the matrix-product rate. What is left is in the"
        " adapter's and attention's thin products, in a layer's weights being copied out of their"
        " stack, in elementwise work, and in two cores waiting for each other and for memory."
        " Tried, predicted and seen (single measurements with scripts that were not kept; the first"
        " four on two cores of Zen 5, the others of Zen 4):",
        "\n".join(
            table(
                ["what was tried", "predicted", "seen in an update", "and so"],
                [
                    ["layers unrolled, weights apart", "-15 %", "+19 % (gradient)", "no"],
                    [
                        "layers as calls that are not inlined, weights apart",
                        "-15 %",
                        "-10 % (gradient)",
                        "no: three times the compile time, and weights in two layouts",
                    ],
                    ["adapter added to its kernel first", "-10 %", "-2 % (gradient)", "no"],
                    ["the same, dx and its adapter's part together", "-5 %", "0", "no"],
                    ["malloc in huge pages", "-5 %", "-4 to -8 %", "yes, where glibc can"],
                    ["malloc that keeps its small pages", "-5 %", "within noise", "no"],
                    ["keys of one path and the block, not all before", "-7 %", "-3 to -7 %", "yes"],
                    ["as many keys as fill whole tiles", "-3 %", "-2 % on one core", "yes"],
                    ["a softmax without sums in its backward pass", "-2 %", "0", "yes, shorter"],
                    [
                        "normalisers in one pass over the embedding",
                        "-4 %",
                        "-7 % on one core",
                        "yes",
                    ],
                    ["steps in turns instead of side by side", "", "-2 to -4 %", "yes"],
                    ["nothing recomputed", "", "+4 to +6 %", "no: memory traffic"],
                    ["rotary angles without splitting and joining", "-1 %", "slower steps", "no"],
                    ["512-bit vectors in elementwise work", "", "0", "no"],
                ],
            )
        ),
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def thinking() -> list[str]:
    results = read("thinking")
    nodes, copies = results["gradient"]["nodes"], results["gradient"]["seconds"]
    made, sampled = results["sampling"]["tokens"], results["sampling"]["seconds"]
    rows = [
        [
            "nodes of the tree; tokens of the texts one by one",
            f"{nodes['tree']:,}",
            f"{nodes['flat']:,}",
            f"{nodes['tree'] / nodes['flat']:.2f}x",
        ],
        [
            "gradient of the tree; of the texts, s",
            ranged(copies["tree"], 1),
            ranged(copies["flat"], 1),
            f"{copies['tree']['median'] / copies['flat']['median']:.2f}x",
        ],
        [
            "tokens sampled a second; by `generate` on copies",
            f"{made / sampled['tree']['median']:.0f}",
            f"{made / sampled['generate']['median']:.0f}",
            f"{sampled['generate']['median'] / sampled['tree']['median']:.1f}x",
        ],
    ]
    few, many = results["episodes"]["seconds"].items()
    rows.append(
        [
            f"update of {int(many[0]):,} episodes; of {int(few[0]):,}, s",
            ranged(many[1]),
            ranged(few[1]),
            f"{many[1]['median'] / few[1]['median']:.2f}x",
        ]
    )
    useful = results["stages"]["useful_rate"]
    return section(
        "Thinking",
        "`python scripts/benchmarks/thinking.py`:"
        f" {results['thoughts']} thoughts of {results['tokens']} tokens for each of the"
        f" quickstart's {results['prompts']} prompts (shorter and fewer ones where episodes vary)."
        f" An update takes {ranged(results['update']['seconds'], 1)} s.",
        ["figure", "this", "the other", "ratio"],
        rows,
        "Where the time goes, with thoughts that take all of their tokens, and useful FLOPs at the"
        f" rate of matrix products ({results['stages']['matmul_gflops']:.0f} GFLOP/s, measured in"
        f" the same process): sampling at {useful['sampling']:.0%}, learning at"
        f" {useful['update']:.0%}.",
        "\n".join(
            table(
                ["stage", "s", "GFLOP", "of the rate"],
                [
                    [name, f"{one['seconds']:.2f}", f"{one['gflop']:,.0f}", f"{one['share']:.0%}"]
                    for name, one in results["stages"]["stages"].items()
                ],
            )
        ),
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def cost() -> list[str]:
    results = read("cost")
    rows = []
    for name, curve in results["curves"].items():
        points = [f"{int(n):,}: {one['median']:.2f}" for n, one in curve["seconds"].items()]
        rows.append([name, ", ".join(points), ", ".join(map(str, curve["exponents"]))])
    return section(
        "How the cost grows",
        "`python scripts/benchmarks/cost.py`: seconds of an update (the median) where one thing"
        " varies, and the exponents between neighbouring points: 0 costs nothing, 1 is"
        " proportional.",
        ["what varies", "seconds by size", "exponents"],
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def estimators() -> list[str]:
    results = read("estimators")
    rows = []
    curves = results["expected_reward"]
    best = max(max(curve) for runs in curves.values() for curve in runs.values())
    first = next(iter(next(iter(curves.values())).values()))[0]
    level = first + 0.95 * (best - first)

    def reached(curve: list[float] | None) -> str:
        if curve is None:
            return ""
        return next((str(i) for i, reward in enumerate(curve) if reward >= level), "not")

    for name in [*curves, *(n for n in results["variance"] if n not in curves)]:
        noise = results["variance"].get(name, {})
        runs = curves.get(name, {})
        shown = [f"{noise[n]['noise']:.2g}" if n in noise else "" for n in ("1", "4096")]
        cosine = next((f"{x['cosine']:.2f}" for x in noise.values() if "cosine" in x), "")
        rows.append([name, *shown, cosine, *(reached(runs.get(n)) for n in ("1", "4096"))])
    head = ["estimator", "noise, 1 episode", "4,096 episodes", "cosine of its mean"]
    head += ["updates to 95 %, 1 episode", "4,096 episodes"]
    return section(
        "Gradient estimators",
        "`python scripts/benchmarks/estimators.py` on Gemma 3 270M, deontological reward against"
        " tit-for-tat. Noise is the variance of an estimate of the whole adapter's gradient over"
        " its mean's square, at the first update; the cosine is that of the mean with the exact"
        " gradient. Learning is Adam on the estimate alone, until the exact expected reward has"
        f" made 95 % of the way from {first:.2f} to {best:.2f}.",
        head,
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def start() -> list[str]:
    results = read("start")
    rows = [[name, ranged(seconds, 1)] for name, seconds in results["seconds"].items()]
    return section(
        "From the command to the first update",
        "`python scripts/benchmarks/start.py`: the quickstart until its first update is on"
        " the disk.",
        ["", "seconds"],
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def learning() -> list[str]:
    results = read("learning")
    rows = []
    for name, run in results["programs"].items():
        rewards, at = run["reward"], learned(run)
        reached = ["not", "", ""]
        if at is not None:
            reached = [str(at + 1), f"{run['seconds'][at]:.0f}", f"{run['rounds'][at]:,}"]
        rows.append(
            [name, str(len(rewards)), f"{rewards[0]:.2f}", f"{sum(rewards[-5:]) / 5:.2f}", *reached]
        )
    head = ["program", "updates", "first reward", "mean of the last five"]
    head += [f"updates to {LEVEL}", "seconds", "rounds"]
    return section(
        "Learning",
        "`python scripts/benchmarks/learning.py`: the reward of the rounds played in each update,"
        f" the same model, reward, opponent and learning rate ({results['learning_rate']:.0e}), one"
        f" run each. The level is a mean reward of {LEVEL} over five updates; the least a round"
        " gives is -6, the most 0.",
        head,
        rows,
    )


def mixtures() -> list[str]:
    results = read("mixture")
    rows = [
        [name, ranged(one), f"{one['times']:.2f}x", f"{one['drawing_and_packing']:.2%}"]
        for name, one in results["kinds"].items()
    ]
    return section(
        "Mixtures",
        "`python scripts/benchmarks/mixture.py`: seconds of an update. Every one of a mixture of"
        " labels draws conditions that were not drawn before, so that their prompts are packed and"
        " their reference is computed too; later updates find both.",
        ["what is drawn", "seconds", "against one condition", "drawing and packing"],
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def populations() -> list[str]:
    """Figures that `population.py` prints."""
    rows = [
        ["exact estimator, from a uniform table to each reward's optimum", "0.2 s or less"],
        ["tabular population, an update of 1 and of 1,000 members, exact", "0.5 ms, 8.4 ms"],
        ["what a member adds to memory besides activations", "21.7 MiB"],
        [
            "rollout of 96 opponents x games at once",
            "72 million rounds/s, 410x Axelrod's matches",
        ],
        ["tournament of 100 agents x 6 games, exact", "4.0 s"],
    ]
    return section(
        "Populations",
        "`python scripts/benchmarks/population.py`, which prints its figures, on a day when the"
        " same two cores made 296 GFLOP/s.",
        ["figure", "measured"],
        rows,
        "On a CPU a population of adapters saves set-up and hands, not time: one adapter's products"
        " already run at the machine's full rate.",
    )


def tree() -> list[str]:
    """A figure that `update.py` prints."""
    return section(
        "The prompt tree",
        "`python scripts/benchmarks/update.py`, which prints its figures: the tree against one flat"
        " batch of the prompts.",
        ["figure", "measured"],
        [["tokens", "4.2x fewer"], ["time of a gradient", "6.0x less"]],
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


_LATER = (against_grpo, thinking)  # that have no section before they are measured


def page() -> str:
    """The text of docs/benchmarks.md."""
    parts = [in_short, against_trl, against_grpo, against_tunix, learning, rounds, estimators, cost]
    parts += [mixtures, populations, tree, thinking, start, roofline]
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
