"""docs/accelerator.md from what `accelerator_check.py` measured or predicted."""

from typing import Any

from accelerator.cases import EFFICIENCY, ENOUGH, H100_FLOPS, TOLERANCES, UNJUDGED

GIB = 2**30


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    lines = ["# On an accelerator", "", "Written by `python scripts/accelerator_check.py`.", ""]
    makers = {
        "device": _device,
        "paper": _paper,
        "parity": _parity,
        "speed": _speed,
        "rollouts": _rollouts,
        "learning": _learning,
    }
    for part, make in makers.items():
        if part in results:
            found = results[part]
            failed = isinstance(found, dict) and "failed" in found
            lines += [f"{part}: {found['failed']}."] if failed else make(found, results)
            lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def failures(results: dict[str, Any]) -> list[str]:
    """What failed, did not learn, or is further from the CPU than it may be.

    Of models whose speed is measured some may be too large for the device, but not all.
    """
    parity, speed = results.get("parity", {}), results.get("speed", {})
    missed = [
        f"{part}: {found['failed']}"
        for part, found in results.items()
        if isinstance(found, dict) and "failed" in found
    ]
    if speed and all("failed" in found for found in speed.values()):
        missed.append("speed: no model could be measured")
    if results.get("learning", {}).get("at_optimum") is False:
        missed.append("learning: the reward's optimum was not reached")
    if "failed" in parity:
        return missed
    return missed + [
        f"{name} in {dtype} is too far from the CPU"
        for name, kinds in parity.items()
        if "failed" not in kinds
        for dtype, found in kinds.items()
        if (name, dtype) != UNJUDGED and not _near(dtype, found)
    ]


def _near(dtype: str, found: dict[str, Any]) -> bool:
    rounding = found.get("rounding", {"log_prob": 0.0, "gradient": 0.0})
    most, relative = TOLERANCES[dtype]
    excess = {kind: found[kind] - rounding[kind] for kind in rounding}
    return excess["log_prob"] <= most and excess["gradient"] <= relative


def _device(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    where = f"Python {found['python']}, JAX {found['jax']}"
    if found["platform"] == "cpu":
        line = f"**Not measured: no accelerator was there** (a CPU, {where})."
        if "paper" in results:
            line += " What follows are predictions, and what can be compared on a CPU."
        return [line]
    memory = "" if found["bytes"] is None else f", {found['bytes'] / GIB:.1f} GiB for XLA"
    rates = (f"{rate / 1e12:.1f} TFLOP/s in {name}" for name, rate in found["rates"].items())
    return [f"{found['count']} x {found['kind']}{memory}; {where}.", "", *_products(list(rates))]


def _products(rates: list[str]) -> list[str]:
    return [f"Matrix products: {', '.join(rates)}."] if rates else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _paper(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows = []
    for name, case in found.items():
        seconds = case["flops"] / (EFFICIENCY * H100_FLOPS)
        rows.append(
            [
                name,
                f"{case['nodes']:,}",
                f"{case['flops'] / 1e12:.2f}",
                f"{seconds:.3f}",
                f"{case['bytes'] / GIB:.1f}",
                f"{case['largest_population']:,}",
            ]
        )
    return [
        "## Predicted",
        "",
        f"An H100 of 80 GB, random weights in bfloat16, LoRA rank 64 on every linear layer, 4,096"
        f" episodes. Seconds are useful FLOPs at {EFFICIENCY:.0%} of the published"
        f" {H100_FLOPS / 1e12:.0f} TFLOP/s; sampling thoughts, which is bound by memory, is not in"
        " them. Memory is what training prints. [The scaling model](scaling.md) predicts more"
        " chips, by XLA's own account, which is larger: it compiled for CPUs.",
        "",
        *_table(
            ["update", "nodes", "TFLOP", "seconds", "GiB", "largest population"],
            rows,
        ),
    ]


def _parity(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    told = (
        "The largest difference of a log-probability over 16 prompts, and the distance of the"
        " gradients of LoRA relative to their norm, from a CPU in float32 with matrix products of"
        " the highest precision. For bfloat16 both read the same rounded weights"
    )
    if results["device"]["platform"] == "cpu":
        told += ", on the same CPU: there is nothing else to compare, and this is what rounding is."
        told += " Of experts it changes which ones a token goes to."
        head = ["model", "dtype", "log-probability", "gradient"]
    else:
        most = {dtype: f"{at:g} and {by:g}" for dtype, (at, by) in TOLERANCES.items()}
        told += f". Within is {most['float32']} in float32, and in bfloat16 {most['bfloat16']} more"
        told += " than the CPU's own bfloat16 (in brackets). Of experts rounding changes which ones"
        told += " a token goes to: not judged."
        head = ["model", "dtype", "log-probability", "gradient", "within"]
    rows = []
    for name, kinds in found.items():
        if "failed" in kinds:
            rows.append([name, kinds["failed"], *[""] * (len(head) - 2)])
            continue
        rows += [_parity_row(name, dtype, both)[: len(head)] for dtype, both in kinds.items()]
    return ["## Parity", "", told, "", *_table(head, rows)]


def _parity_row(name: str, dtype: str, found: dict[str, Any]) -> list[str]:
    cells = [f"{found[kind]:.1e}" for kind in ("log_prob", "gradient")]
    rounding = found.get("rounding")
    if rounding is not None and rounding["log_prob"] != found["log_prob"]:
        cells = [f"{cell} ({own:.1e})" for cell, own in zip(cells, rounding.values(), strict=True)]
    verdict = "yes" if _near(dtype, found) else "**no**"
    return [name, dtype, *cells, "" if (name, dtype) == UNJUDGED else verdict]


def _speed(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows = []
    for name, case in found.items():
        if "failed" in case:
            rows.append([name, case["failed"], *[""] * 6])
            continue
        told = case["predicted"]
        peak = "not told" if case["peak_bytes"] is None else f"{case['peak_bytes'] / GIB:.2f}"
        rows.append(
            [
                name,
                f"{case['seconds']:.4f} ({case['fastest']:.4f})",
                f"{told['flops'] / 1e12:.3f}",
                f"{case['share_of_peak']:.0%}",
                f"{case['compile_seconds']:.1f}",
                f"{told['bytes'] / GIB:.2f}",
                peak,
                f"{told.get('largest_population', 'not told')}",
            ]
        )
    return [
        "## Speed and memory",
        "",
        "Random weights, LoRA rank 64 on every linear layer, 4,096 episodes; the median of ten"
        " updates (the fastest). The share is of the matrix-product rate in the same dtype,"
        " measured in the same process, that useful FLOPs reach; sampling thoughts is not among"
        " them. Memory is GiB of the process's peak; the largest population is predicted.",
        "",
        *_table(
            [
                *("update", "seconds", "TFLOP", "share of peak", "compiling, s"),
                *("GiB predicted", "GiB measured", "largest population"),
            ],
            rows,
        ),
    ]


def _rollouts(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rate = found["rounds_per_second"]
    return ["## Rollouts", "", f"{rate / 1e6:,.0f} million rounds a second, five an episode."]


def _learning(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    verdict = "at" if found["at_optimum"] else "**not at**"
    return [
        "## Learning",
        "",
        f"{found['model']}, deontological reward against tit-for-tat: after {found['updates']}"
        f" updates ({found['seconds']:.1f} s) {verdict} the one-step optimum ({ENOUGH:.0%} asked"
        f" for): the better move in {found['better_move']:.1%} at least, legal answers in"
        f" {found['legal']:.1%} at least.",
    ]
