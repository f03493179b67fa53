"""Sections of docs/benchmarks.md on what our own parts cost."""

from page_parts import machine, ranged, section, table
from workers import read


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
        " proportional. The number of prompts is that of a model of four small layers, so that"
        " 4,096 of them fit into minutes.",
        ["what varies", "seconds by size", "exponents"],
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
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
        " their reference is computed too; later updates find both, and so do those of few labels."
        " Trees have room for the longest labels: words have one token, `action1` and longer labels"
        " two.",
        ["what is drawn", "seconds", "against one condition", "drawing and packing"],
        rows,
        f"{machine(results)}; jax {results['versions']['jax']}.",
    )


def populations() -> list[str]:
    results = read("population")
    exact, adapters = results["tables"]["exact"], results["adapters"]
    played, met = results["rollouts"], results["tournament"]
    rows = [
        [
            "exact estimator, from a uniform table to each reward's optimum",
            f"{max(results['exact'].values()):.2f} s or less",
        ],
        [
            "tabular population, an update of 1 and of 1,000 members, exact",
            f"{exact['one'] * 1e3:.1f} ms, {exact['many'] * 1e3:.1f} ms",
        ],
        [
            f"update of {adapters['members']} adapters, a member's share against one alone",
            f"{adapters['many'] / adapters['members'] / adapters['one']:.2f}x",
        ],
        [
            "what a member adds to memory besides activations",
            f"{adapters['member_bytes'] / 2**20:.1f} MiB",
        ],
        [
            f"rollout of {played['pairs']} opponents x games at once",
            f"{played['rate'] / 1e6:.0f} million rounds/s,"
            f" {played['rate'] / played['axelrod']:.0f}x Axelrod's matches",
        ],
        [f"tournament of 100 agents x {met['games']} games, exact", f"{met['seconds']:.1f} s"],
    ]
    return section(
        "Populations",
        "`python scripts/benchmarks/population.py`, everything in one process.",
        ["figure", "measured"],
        rows,
        "On a CPU a population of adapters saves set-up and hands, not time: one adapter's products"
        f" already run at the machine's full rate. {machine(results)}; jax"
        f" {results['versions']['jax']}.",
    )


def tree() -> list[str]:
    results = read("tree")
    tokens, times = results["tokens"], results["seconds"]
    return section(
        "The prompt tree",
        "`python scripts/benchmarks/update.py`: the tree against one flat batch of the prompts.",
        ["figure", "tree", "flat", ""],
        [
            ["tokens", f"{tokens[0]:,}", f"{tokens[1]:,}", f"{tokens[1] / tokens[0]:.1f}x fewer"],
            [
                "seconds of a gradient",
                f"{times[0]:.2f}",
                f"{times[1]:.2f}",
                f"{times[1] / times[0]:.1f}x less",
            ],
        ],
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
