"""The figures that say most, in one table; the README quotes some of them.

`page.py` puts the table first in docs/benchmarks.md.
"""

from typing import Any

from workers import is_measured, read

LEVEL = -0.5  # of the deontological reward
# Measured on two cores of Zen 4, or of a processor without AVX-512; the rest on Granite Rapids.
OTHER_MACHINE = dict.fromkeys(["learning", "against_tunix", "against_grpo"], " *")
OTHER_MACHINE["against_lm_eval"] = " †"
Figure = tuple[str, str, str]  # what, measured, by which script


def rows() -> list[list[str]]:
    found = [*from_trl(), *from_cost(), *from_start(), *from_learning(), *from_tunix()]
    found += [*from_mixture(), *(from_thinking() if is_measured("against_grpo") else [])]
    found += from_lm_eval() if is_measured("against_lm_eval") else []
    return [
        [what + OTHER_MACHINE.get(script, ""), measured, f"`{script}.py`"]
        for what, measured, script in [*found, *from_rounds(), *from_roofline()]
    ]


def from_trl() -> list[Figure]:
    programs = read("against_trl")["programs"]
    theirs, ours = programs["TRL, 1 episode"], programs["ours, 1 episode"]
    many = programs["ours, 4,096 episodes"]
    slow, fast = (one["seconds_per_update"]["median"] for one in (theirs, ours))
    few, lots = (one["rounds_per_second"] for one in (theirs, many))
    big, small = theirs["peak_gib"], ours["peak_gib"]
    return [
        (
            "update of five rounds, LoRA rank 64: ours, TRL",
            f"{fast:.2f} s, {slow:.1f} s: {slow / fast:.0f}x",
            "against_trl",
        ),
        (
            "rounds a second, 4,096 episodes an update: ours, TRL with its one",
            f"{lots:,.0f}, {few:.2f}: {lots / few:,.0f}x",
            "against_trl",
        ),
        (
            "peak memory: ours, TRL",
            f"{small:.1f} GiB, {big:.1f} GiB: {small / big:.2f}x",
            "against_trl",
        ),
    ]


def from_cost() -> list[Figure]:
    curves = read("cost")["curves"]
    at = {n: one["median"] for n, one in curves["episodes"]["seconds"].items()}
    adapters = {int(n): one["median"] for n, one in curves["adapters"]["seconds"].items()}
    return [
        (
            "update of a million episodes, of a thousand",
            f"{at['1000000']:.2f} s, {at['1000']:.2f} s: {at['1000000'] / at['1000']:.2f}x",
            "cost",
        ),
        (
            "population of 8 adapters, time per update and member against a run alone",
            f"{adapters[8] / 8 / adapters[1]:.2f}x",
            "cost",
        ),
    ]


def from_mixture() -> list[Figure]:
    kinds = read("mixture")["kinds"]
    names = ["labels, 1 condition", "few labels, 4 conditions", "labels, 4 conditions"]
    times = [kinds[f"{name} an update"]["times"] for name in names]
    longer = kinds["longer labels, 1 condition an update"]["times"]
    return [
        (
            "update of a mixture of words against one condition: a new one drawn, four known ones,"
            " four new ones; of longer labels a new one",
            f"{', '.join(f'{n:.2f}x' for n in times)}; {longer:.2f}x",
            "mixture",
        )
    ]


def from_thinking() -> list[Figure]:
    theirs, *own = read("against_grpo")["programs"].items()
    slow, big = theirs[1]["seconds_per_update"]["median"], theirs[1]["peak_gib"]
    found = []
    for name, one in own:
        fast, small = one["seconds_per_update"]["median"], one["peak_gib"]
        found.append(
            (
                f"update with 128 thoughts of 32 tokens: {name}, TRL's GRPOTrainer",
                f"{fast:.1f} s, {slow:.1f} s: {slow / fast:.1f}x;"
                f" {small:.1f} GiB, {big:.1f} GiB: {small / big:.2f}x",
                "against_grpo",
            )
        )
    return found


def from_lm_eval() -> list[Figure]:
    seconds = read("against_lm_eval")["seconds"]
    slow, fast = seconds["lm-eval"], seconds["ours"]
    figure = "options of scenarios in two orders, base and tuned: ours, lm-eval"
    return [(figure, f"{fast:.0f} s, {slow:.0f} s: {slow / fast:.1f}x", "against_lm_eval")]


def from_start() -> list[Figure]:
    empty, full = (one["median"] for one in read("start")["seconds"].values())
    figure = "command to first update, caches empty and full"
    return [(figure, f"{empty:.1f} s, {full:.1f} s", "start")]


def from_learning() -> list[Figure]:
    programs = read("learning")["programs"]
    names = ("ours, 4,096 episodes", "ours, 1 episode", "TRL, 1 episode")
    many, few, theirs = (programs[name]["seconds"][learned(programs[name])] for name in names)
    return [
        (
            f"time until the reward is learned (mean of five updates at {LEVEL}): ours with 4,096"
            " episodes, with one; TRL",
            f"{many:.0f} s, {few:.0f} s; {theirs:.0f} s",
            "learning",
        )
    ]


def from_tunix() -> list[Figure]:
    results = read("against_tunix")
    figures = []
    for model, key in (("a tiny Gemma", "programs"), ("Gemma 3 270M", "programs_270m")):
        programs = results[key]
        best = best_tunix(programs)
        speeds = ratios(programs, best, "samples_per_second")
        compiling = ratios(programs, best, "compile")
        figures += [
            (
                f"samples a second on {model} against Tunix at its best batch: ours with 256 an"
                " update, with 4,096",
                " and ".join(f"{ratio:,.0f}x" for ratio in speeds),
                "against_tunix",
            ),
            (
                f"tracing and compiling on {model} against Tunix: the same",
                " and ".join(f"{ratio:.2f}x" for ratio in compiling),
                "against_tunix",
            ),
        ]
    return figures


def best_tunix(programs: dict[str, Any]) -> dict[str, Any]:
    theirs = [one for name, one in programs.items() if name.startswith("Tunix")]
    return max(theirs, key=lambda one: one["samples_per_second"])


def ratios(programs: dict[str, Any], best: dict[str, Any], key: str) -> list[float]:
    """Ours to theirs."""
    ours = [one for name, one in programs.items() if name.startswith("ours")]
    return [one[key] / best[key] for one in ours]


def from_rounds() -> list[Figure]:
    programs = read("rounds")["programs"]
    ours, axelrod = programs["ours"]["100000"]["median"], programs["axelrod"]
    theirs = sorted(axelrod[n]["median"] / 1e6 for n in ("1", "1000"))
    return [
        (
            "rollout alone, 100,000 episodes: ours; Axelrod, one and 1,000",
            f"{ours / 1e6:.0f}; {theirs[1]:.1f} and {theirs[0]:.1f} million rounds/s",
            "rounds",
        )
    ]


def from_roofline() -> list[Figure]:
    models = {"roofline": "", "roofline-smollm2": ", SmolLM2 135M"}
    return [_of_an_update(read(name), model) for name, model in models.items() if is_measured(name)]


def _of_an_update(results: dict[str, Any], model: str) -> Figure:
    seconds, useful = results["update_seconds"]["median"], results["useful_rate"]
    return (
        f"update at the quickstart's setting{model}; useful FLOPs of it and of its forward pass"
        " against the matrix-product rate",
        f"{seconds:.2f} s; {useful['update']:.0%}, {useful['forward']:.0%}",
        "roofline",
    )


def learned(run: dict[str, Any]) -> int | None:
    """The first update at which the mean reward of five is at the level, counted from 0."""
    rewards = run["reward"]
    means = [sum(rewards[at : at + 5]) / 5 for at in range(len(rewards) - 4)]
    return next((at + 4 for at, mean in enumerate(means) if mean >= LEVEL), None)
