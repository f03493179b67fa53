"""Typed configuration: dataclasses with defaults, read from YAML, overridden by flags.

Every key of the YAML has a flag with the same dotted name, e.g. `--ppo.learning_rate 1e-4`. The
keys are in `schema.py`, what contradicts each other in `checks.py`; `loading.py` makes a
configuration of files and flags, which `reader.py` reads; `trees.py` writes and compares them.
"""

from jaxmoral.config.loading import ALONE, load, load_members, parse
from jaxmoral.config.reader import MAX_TEXT
from jaxmoral.config.schema import (
    KEYS,
    Config,
    EnvConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    MixtureConfig,
    ModelConfig,
    PPOConfig,
    PromptConfig,
    RewardConfig,
    ThinkingConfig,
)
from jaxmoral.config.trees import differences, flatten, save, to_dict, tree_differences

__all__ = [
    "ALONE",
    "KEYS",
    "MAX_TEXT",
    "Config",
    "EnvConfig",
    "EvaluationConfig",
    "LoraConfig",
    "MeshConfig",
    "MixtureConfig",
    "ModelConfig",
    "PPOConfig",
    "PromptConfig",
    "RewardConfig",
    "ThinkingConfig",
    "differences",
    "flatten",
    "load",
    "load_members",
    "parse",
    "save",
    "to_dict",
    "tree_differences",
]
