"""Sections of docs/benchmarks.md where other programs do the same."""

from typing import Any

from overview import LEVEL, best_tunix, learned
from page_parts import machine, ranged, section, versions
from workers import read


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
        " eight generations at a time; ours writes a thought, and the answer after it is exact."
        " Smaller trees (`model.max_nodes`) take less memory and more time."
        f" Updates measured after a first one: {results['updates']}{results.get('note', '')}.",
        ["program", "seconds an update", "faster", "peak GiB", "share"],
        rows,
        f"{machine(results)}; {versions(programs)}.",
    )


def against_lm_eval() -> list[str]:
    results = read("against_lm_eval")
    base = results["seconds"]["lm-eval"]
    rows = [
        [
            name,
            f"{seconds:.1f}",
            f"{base / seconds:.1f}x",
            f"{results['peak_gib']['lm-eval' if name == 'lm-eval' else 'ours']:.1f}",
        ]
        for name, seconds in results["seconds"].items()
    ]
    return section(
        "Scenarios, against lm-eval",
        f"`python scripts/benchmarks/against_lm_eval.py --items {results['items']}`: Gemma 3 270M"
        f" and a tuned agent, {results['items']:,} items of two options, shown in both orders"
        f" ({results['tokens']:.0f} tokens each). lm-eval is asked for the log-likelihood of the"
        " same answers (a letter, with or without a space before it), in the batches that are"
        f" fastest of 1, 4 and 16; of answers of one token it reads the common text once. Both"
        f" find the same probabilities within {results['apart']:g}. Ours is measured before lm-eval"
        " (then compiling is in it) and after.",
        ["program", "seconds", "faster", "peak GiB"],
        rows,
        f"{machine(results)}; {versions({'': results})}.",
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
