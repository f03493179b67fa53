"""Plays deterministic opponents in the Axelrod library; writes the moves that the tests expect.

    pip install axelrod==4.13.1
    python scripts/golden_opponents.py [--output tests/golden/opponents.json]

Every opponent meets every scripted agent. A script is as long as the match, because MockPlayer
starts again at its end, and every match is new, because the library's cache of matches knows a
player by its name only, and all scripts have the same.
"""

import argparse
import json
from pathlib import Path

import axelrod as axl
import numpy as np

ROUNDS = 200

# Our name, and the library's class and what it is given.
PLAYERS: dict[str, tuple] = {
    "tit-for-tat": ("TitForTat",),
    "always-cooperate": ("Cooperator",),
    "always-defect": ("Defector",),
    "suspicious-tit-for-tat": ("SuspiciousTitForTat",),
    "tit-for-two-tats": ("TitFor2Tats",),
    "two-tits-for-tat": ("TwoTitsForTat",),
    "grim-trigger": ("Grudger",),
    "win-stay-lose-shift": ("WinStayLoseShift",),
    "alternator": ("Alternator",),
    "anti-tit-for-tat": ("AntiTitForTat",),
    "bully": ("Bully",),
    "handshake": ("Handshake",),
    "prober": ("Prober",),
    "random(1)": ("Cooperator",),
    "generous-tit-for-tat(0)": ("GTFT", 0),
    "memory-one(0, 1, 1, 0, 0)": ("WinShiftLoseStay",),
    "memory-one(1, 0, 0, 0)": ("MemoryOnePlayer", (1, 0, 0, 0)),
    "noisy(tit-for-tat, 1)": ("Bully",),  # always the other move
}


def scripts() -> dict[str, str]:
    """The agents' moves by name."""
    alternating = "CD" * (ROUNDS // 2)
    bursts = "".join("C" * size + "D" * (size // 2 + 1) for size in range(1, 20))
    found = {
        "all C": "C" * ROUNDS,
        "all D": "D" * ROUNDS,
        "alternating": alternating,
        "alternating from D": "D" + alternating[:-1],
        "one D": "C" * 100 + "D" + "C" * 99,
        "one C": "D" * 100 + "C" + "D" * 99,
        "pairs": "CCDD" * (ROUNDS // 4),
        "bursts": bursts[:ROUNDS],
    }
    for seed, defects in enumerate((0.1, 0.5, 0.5, 0.9)):
        draws = np.random.default_rng(seed).random(ROUNDS) < defects
        found[f"random {seed}"] = "".join("CD"[int(move)] for move in draws)
    assert {len(moves) for moves in found.values()} == {ROUNDS}
    return found


def play(player: tuple, agent: str) -> str:
    """The library's moves against a scripted agent."""
    machine = getattr(axl, player[0])(*player[1:])
    script = axl.MockPlayer([axl.Action.from_char(move) for move in agent])
    rounds = axl.Match((machine, script), turns=len(agent)).play()
    assert "".join(str(move) for _, move in rounds) == agent
    return "".join(str(move) for move, _ in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("tests/golden/opponents.json"))
    output = parser.parse_args().output
    agents = scripts()
    golden = {
        "axelrod": axl.__version__,
        "agents": agents,
        "opponents": {
            name: {
                "player": player,
                "moves": {agent: play(player, moves) for agent, moves in agents.items()},
            }
            for name, player in PLAYERS.items()
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
