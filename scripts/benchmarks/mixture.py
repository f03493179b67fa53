"""What a mixture costs: updates beside those of one condition, in turns.

    python scripts/benchmarks/mixture.py [--updates 8]

All on the packaged model with the default settings. Every update of a mixture of labels is made to
draw conditions that were not drawn before, whose prompts are packed and whose reference is computed
first: the worst case; of a few labels all were drawn before. Results go to
docs/benchmarks/mixture.json.
"""

import argparse
import time

from cost import Updates
from workers import spread, versions, write

from jaxmoral import config as configs
from jaxmoral.learning.agent import Agent, make_agent, make_presentation
from jaxmoral.learning.inputs import Conditions
from jaxmoral.learning.met import Met
from jaxmoral.learning.mixture import drawn
from jaxmoral.learning.resolve import resolve

LABELS = ["--mixture.labels", "words(200)", "--mixture.both_ways", "true"]
FEW = ["--mixture.labels", "words(8)"]  # two pairs of each kind
FOUR = ["--mixture.conditions", "4"]
KINDS = {
    "one condition": [],
    "labels, 1 condition an update": LABELS,
    "labels, 4 conditions an update": [*LABELS, *FOUR],
    "few labels, 4 conditions an update": [*FEW, *FOUR],
    "longer labels, 1 condition an update": ["--mixture.labels", "labels(200)", *LABELS[2:]],
    "four machines": [
        "--mixture.opponents",
        "{tit-for-tat: 2, random: 1, always-defect: 1, always-cooperate: 1}",
    ],
    "a past self": ["--env.opponent", "past(2)"],
    "labels and a past self": [*LABELS, "--env.opponent", "past(2)"],
}
WARM_UP = 5  # updates, by which all of few labels were drawn


class Kind(Updates):
    """A kind of mixture, or none."""

    def __init__(self, agent: Agent, flags: list[str], num_updates: int):
        self.config = resolve(configs.load(None, ["--updates", str(num_updates), *flags]))
        presentation = make_presentation(self.config, agent.model)
        self.agent = agent._replace(presentation=presentation)
        super().__init__([(self.config, self.agent)])

    def draw_and_pack(self) -> list[float]:
        """Seconds to draw an update's conditions and to pack those that are new."""
        members, times = [(self.config, self.agent)], []
        conditions = Conditions(members, Met(members))
        for update in range(self.done):
            start = time.perf_counter()
            conditions.prompts(conditions.shown(update))
            times.append(time.perf_counter() - start)
        return times


def seed_without_repeats(flags: list[str], num_updates: int) -> list[str]:
    """The flags with the first seed that draws no condition twice."""
    for seed in range(1000):
        found = [*flags, "--seed", str(seed)]
        config = resolve(configs.load(None, found))
        names = [choice.name for update in range(num_updates) for choice in drawn(config, update)]
        if len({*names}) == len(names) or flags[:2] == FEW or "--mixture.labels" not in flags:
            return found
    raise RuntimeError("every seed repeats a condition")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=8)
    updates = parser.parse_args().updates
    agent = make_agent(resolve(configs.load(None, [])))
    kinds = {}
    for name, flags in KINDS.items():
        warm_up = WARM_UP if flags[:2] == FEW else 1
        total = warm_up + updates + 1  # the last one prepares none
        kinds[name] = Kind(agent, seed_without_repeats(flags, total), total)
        for _ in range(warm_up):
            kinds[name]()
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(updates):
        for name, kind in kinds.items():
            times[name].append(kind())
    found = {name: spread(taken) for name, taken in times.items()}
    alone = found["one condition"]["median"]
    for name, kind in kinds.items():
        found[name]["times"] = found[name]["median"] / alone
        share = spread(kind.draw_and_pack())["median"] / found[name]["median"]
        found[name]["drawing_and_packing"] = share if "labels" in name else 0.0
        print(f"{name}: {found[name]}", flush=True)
    write("mixture", {"versions": versions("jax"), "updates": updates, "kinds": found})


if __name__ == "__main__":
    main()
