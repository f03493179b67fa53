"""A worker: Tunix's PPO learner on a Gemma 3, one update for each batch of prompts.

    python tunix_worker.py TASK.json BATCH

It runs in an environment of its own. TASK.json comes from `against_tunix.py`: sizes of the model,
tokenised prompts of one length, settings. The reward is whether the first new token is even.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from jax.sharding import AxisType
from tunix.models.gemma3 import model as gemma3
from tunix.rl import rl_cluster
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from workers import count_compilation, peak_gib, versions

LINEAR = ".*(q_einsum|kv_einsum|attn_vec_einsum|gate_proj|up_proj|down_proj).*"
PAD, EOS, BOS = 0, 1, 2


class Numbers:
    """A tokenizer whose texts are token ids."""

    def encode(self, text, **kwargs):
        return [int(word) for word in text.split()]

    def decode(self, ids, **kwargs):
        return " ".join(str(int(token)) for token in ids)

    def bos_id(self):
        return BOS

    def eos_id(self):
        return EOS

    def pad_id(self):
        return PAD


class Critic(nnx.Module):
    """The backbone with a linear head on its last hidden states."""

    def __init__(self, base, width, rngs):
        self.base = base
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, tokens, positions=None, cache=None, attention_mask=None, segment_ids=None):
        self.base(tokens, positions, cache, attention_mask, output_hidden_states=True)
        sown: Any = nnx.pop(self.base, nnx.Intermediate)
        return self.head(sown["all_hidden_states"].get_value()[-1]), cache


def make_learner(task: dict, reward) -> ppo_learner.PPOLearner:
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    config = gemma3.ModelConfig(**task["model"], param_dtype=jnp.float32)
    provider = qwix.LoraProvider(module_path=LINEAR, rank=task["rank"], alpha=task["alpha"])

    def adapted(model, seed):
        return qwix.apply_lora_to_model(
            model, provider, rngs=nnx.Rngs(seed), **model.get_model_input()
        )

    with jax.set_mesh(mesh):
        base = gemma3.Gemma3(config, rngs=nnx.Rngs(0))
        actor = adapted(base, 1)
        second = adapted(gemma3.Gemma3(config, rngs=nnx.Rngs(0)), 2)
        critic = Critic(second, config.embed_dim, nnx.Rngs(3))
    role = rl_cluster.Role
    cluster_config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((role.ACTOR, role.CRITIC, role.REFERENCE, role.ROLLOUT), mesh),
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adam(task["learning_rate"]),
            critic_optimizer=optax.adam(task["learning_rate"]),
            eval_every_n_steps=10**6,
            max_steps=10**6,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=task["new_tokens"],
            max_prompt_length=len(task["prompts"][0]),
            kv_cache_size=256,
            temperature=1.0,
            top_p=1.0,
        ),
    )
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic,
        reference=base,
        tokenizer=Numbers(),
        cluster_config=cluster_config,
    )
    return ppo_learner.PPOLearner(
        rl_cluster=cluster, ppo_config=ppo_learner.PPOConfig(num_iterations=1), reward_fns=reward
    )


def main() -> None:
    task, batch = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    compiling = count_compilation()
    texts = [" ".join(map(str, ids)) for ids in task["prompts"]]
    prompts = np.array([texts[index % len(texts)] for index in range(batch)])

    def reward(prompts, completions, **kwargs):
        return [float(int((text.split() or ["1"])[0]) % 2 == 0) for text in completions]

    def batches():
        """A batch for each request; the time until the next is asked for is the update's."""
        print(json.dumps({"versions": versions("google-tunix", "jax", "flax", "qwix")}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            yield {"prompts": prompts}
            taken = time.perf_counter() - start
            figures = {"seconds": taken, "peak_gib": peak_gib(), "compile": compiling()}
            print(json.dumps(figures), flush=True)

    make_learner(task, reward).train(batches())


if __name__ == "__main__":
    main()
