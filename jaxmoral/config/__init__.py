"""Typed configuration: dataclasses with defaults, read from YAML, overridden by flags.

Every key of the YAML has a flag with the same dotted name, e.g. `--ppo.learning_rate 1e-4`. The
keys are in `schema.py`, `base.py` and `keeping.py`, what contradicts each other in `checks.py`;
`loading.py` makes a configuration of files and flags, which `reader.py` reads; `trees.py` writes
and compares them; `states.py` says what becomes of them in a run.
"""

from jaxmoral.config.base import LoraConfig, MeshConfig, ModelConfig
from jaxmoral.config.keeping import AnchorConfig, DistilConfig
from jaxmoral.config.loading import (
    ALONE,
    asks_for_members,
    load,
    load_members,
    parse,
    with_evaluation,
)
from jaxmoral.config.reader import MAX_TEXT
from jaxmoral.config.schema import (
    KEYS,
    Config,
    EnvConfig,
    EvaluationConfig,
    MixtureConfig,
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
    "AnchorConfig",
    "Config",
    "DistilConfig",
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
    "asks_for_members",
    "differences",
    "flatten",
    "load",
    "load_members",
    "parse",
    "save",
    "to_dict",
    "tree_differences",
    "with_evaluation",
]
