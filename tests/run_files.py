"""Run folders: what tests look at in them, and runs and evaluations as they would be read."""

import json

from jaxmoral import config as configs
from jaxmoral.learning import metrics
from jaxmoral.learning.resolve import resolve
from jaxmoral.measuring.runs import Run


def quiet(line):
    """Says nothing of what training says."""


def records(folder, without=("seconds",)):
    """A run's metrics but for those that no two runs share."""
    return [{k: v for k, v in r.items() if k not in without} for r in metrics.read(folder)]


def content(folder):
    """Every path in a run folder but the lock, and what the files hold."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


SHARES = dict.fromkeys(metrics.ACTION_TYPES, 1 / 6)


def config(*flags):
    return resolve(configs.load(None, ["--model.source", "tabular", "--updates", "4", *flags]))


def make_run(tmp_path, name, *flags, reward=0.0, evaluation=None, made=None, source="tabular"):
    """A run as `read_run` would find it; its rewards are all `reward`."""
    settled = config(*flags)
    tree = configs.to_dict(settled)
    tree["model"] |= {"source": source}
    settled = configs.parse(tree)
    count = settled.updates if made is None else made
    history = [
        {"update": n + 1, "reward_mean": reward, "action_types": SHARES} for n in range(count)
    ]
    return Run(tmp_path / name, settled, history, evaluation, [])


def write_run(run):
    run.folder.mkdir(parents=True)
    configs.save(run.config, run.folder / "config.yaml")
    lines = [json.dumps(record) + "\n" for record in run.history]
    (run.folder / "metrics.jsonl").write_text("".join(lines))
    if run.evaluation:
        (run.folder / "evaluation.json").write_text(json.dumps(run.evaluation))


def evaluated(suite, values, opponent="random", labels=("action3", "action4")):
    """An evaluation whose regret is a number per game, of the base one more."""

    def measures(value):
        regret = {
            "deontological": {"points": value},
            "utilitarian": {"normalised": value / 10},
        }
        return {"exact": {"regret": regret, "action_types": SHARES, "outcomes": {"C": value}}}

    shown = {"wording": "structured", "persona": "none", "table_order": "original"}
    policy = {name: {"C": 1.0, "D": 0.0, "illegal": 0.0} for name in ("CC", "CD", "DC", "DD")}
    conditions = {
        game: {"game": game, "labels": list(labels), **shown}
        | {
            "policies": {
                "base": {"remembered": policy, "opponents": {opponent: measures(value + 1)}},
                "tuned": {"remembered": policy, "opponents": {opponent: measures(value)}},
            }
        }
        for game, value in values.items()
    }
    heads = {"policies": ["base", "tuned"], "opponents": [opponent], "protocols": ["exact"]}
    heads |= {"largest_gap": None}
    return heads | {"suites": {suite: conditions}}
