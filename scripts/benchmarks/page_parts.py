"""What sections of docs/benchmarks.md are made of: tables, ranges, machines, versions."""

from typing import Any


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
