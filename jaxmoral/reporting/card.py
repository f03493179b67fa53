"""The model card of an exported adapter: what it was trained on, what it does, how to load it."""

import importlib.metadata
from typing import Any

import pandas as pd
import yaml

from jaxmoral.config import Config, differences, flatten, to_dict
from jaxmoral.config.trees import OF_THE_MACHINE
from jaxmoral.learning.whom import trained_against
from jaxmoral.measuring.runs import Run
from jaxmoral.models.peft import named_base

# Of a base that is known; others' licences are theirs to say.
_LICENCES = {"gemma3-270m": "gemma", "smollm2-135m": "apache-2.0"}
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be told
_LIMITS = """- It was trained on prompts of matrix games, and on no other texts.
- A rule learned in them is not a moral agent: with other labels or wordings it may be lost.
- Its answers are labels; what it says when asked why is not what they came from."""


def card(run: Run, policy: pd.DataFrame, *, update: int, command: str) -> str:
    """The card's text, in the hub's format (front matter and Markdown).

    Args:
      run: whose adapter it is.
      policy: from `OpenRun.policy`, in the game of training.
      update: of the checkpoint.
      command: that exported it.
    """
    config = run.config
    base = named_base(config.model.source)
    about: dict[str, Any] = {"library_name": "peft", "tags": ["jaxmoral", "lora", "moral-rewards"]}
    if base is not None:
        about["base_model"] = base
    if config.model.source in _LICENCES:
        about["license"] = _LICENCES[config.model.source]
    how = f"reinforcement learning with the intrinsic reward *{run.title}*"
    if config.objective == "distil":
        how = f"self-distillation of a persona (*{run.title}*)"
    version = importlib.metadata.version("jaxmoral")
    games = ", ".join(config.mixture.games or [config.env.game])
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
            f"# {run.title} in {games}: a LoRA adapter of {config.model.source}\n",
            f"Trained by {how} against {trained_against(config)} for {update} updates, by jaxmoral"
            f" {version}.\n",
            "## What it does\n",
            "Exact probabilities of its answer after each remembered round (its own move first):\n",
            _markdown(policy),
            *_regrets(run),
            "## How it was trained\n",
            "What differs from the defaults:\n",
            "```yaml",
            yaml.safe_dump(_recipe(config), sort_keys=False).strip(),
            "```\n",
            "## How to load it\n",
            _loading(config, base),
            "## Limits\n",
            f"{_LIMITS}\n",
            f"Licence: that of the base, {config.model.source}, holds for what is made of it.\n",
            f"Made by `{command}`.",
        ]
    )


def _markdown(policy: pd.DataFrame) -> str:
    names = [policy.index.name, *policy.columns]
    rows = [
        f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"
        for name, shares in zip(policy.index, policy.to_numpy(), strict=True)
    ]
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows, ""])


def _regrets(run: Run) -> list[str]:
    """Exact regrets of the suite "trained", if the newest checkpoint was evaluated."""
    evaluation = run.evaluation or {}
    if evaluation.get("update") != len(run.history):
        return ["Regrets were not measured.\n"]
    lines = [
        "| game | against | deontological regret, points | utilitarian regret, 0 to 1 | illegal |",
        "|---|---|---|---|---|",
    ]
    for name, condition in evaluation["suites"].get("trained", {}).items():
        for opponent, measured in condition["policies"]["tuned"]["opponents"].items():
            exact = measured.get("exact")
            if exact is None:  # the paper's protocol alone
                continue
            lines.append(
                f"| {name} | {opponent} | {exact['regret']['deontological']['points']:.2f} |"
                f" {exact['regret']['utilitarian']['normalised']:.3f} |"
                f" {exact['outcomes']['illegal']:.1%} |"
            )
    return ["Moral regret, exact, where it was tested:\n", *lines, ""]


def _recipe(config: Config) -> dict[str, Any]:
    """The keys that are not at their defaults, without those of tests and of the machine."""
    values = flatten(to_dict(config))
    changed = differences(Config(), config)
    besides = ("evaluation.", *OF_THE_MACHINE, "model.sha256", "model.dtype")
    return {key: values[key] for key in changed if not key.startswith(besides)}


def _loading(config: Config, base: str | None) -> str:
    first = ""
    if base is None:
        first = (
            "Its base is packaged, and PEFT needs it as a folder:"
            f" `python -m jaxmoral.export --model {config.model.source} --output base`.\n\n"
        )
    name, revision = base or "base", config.model.source.partition("@")[2] if base else ""
    pinned = f', revision="{revision}"' if revision else ""
    rank = min((size for size in _RANKS if size >= config.lora.rank), default=config.lora.rank)
    return f"""{first}```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{pinned})
model = AutoModelForCausalLM.from_pretrained("{name}"{pinned})
model = PeftModel.from_pretrained(model, "this folder")
```

In vLLM: `vllm serve {name}{f" --revision {revision}" if revision else ""} --enable-lora \
--lora-modules moral="this folder" --max-lora-rank {rank}`.
"""
