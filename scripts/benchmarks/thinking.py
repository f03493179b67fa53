"""What thinking costs on the real model: a tree against texts one by one, sampling, an update.

    python scripts/benchmarks/thinking.py [--part NAME] [--any.key value ...]

By default 8 thoughts of 32 tokens for each of the 16 prompts of the quickstart. What is compared
takes turns in one process. Results go to docs/benchmarks/thinking.json; `--part` measures one part
again and leaves the others as they were.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cost import Updates
from roofline import Work, matmul_rate, timed
from workers import is_measured, read, spread, versions, write

from jaxmoral import config as configs
from jaxmoral.config import Config
from jaxmoral.devices.compiler import OFTEN, on_cpu
from jaxmoral.language.prompts import Condition
from jaxmoral.language.thought_tree import Thoughts
from jaxmoral.learning.agent import Agent, make_agent
from jaxmoral.learning.language_policy import PackedPrompts
from jaxmoral.learning.lookup import training_game
from jaxmoral.learning.prompter import Prompter
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.thinking_policy import ThinkingModel, ThinkingPolicy
from jaxmoral.models import sample
from jaxmoral.models.generate import Sampling, generate
from jaxmoral.models.lora import prepare

FLAGS = ["--thinking.tokens", "32", "--thinking.thoughts", "8", "--model.max_nodes", "8192"]
SHORT = ["--thinking.tokens", "8", "--thinking.thoughts", "4"]  # where episodes vary
EPISODES = (1_000, 1_000_000)
REPEATS = 3
jit = partial(jax.jit, compiler_options=on_cpu(OFTEN))  # as the update is compiled


class Measured:
    """What all parts read.

    Attributes:
      flags: besides those that are always given.
      config, agent: as they say.
      policy: whose thoughts take all their tokens, because nothing stops them.
      inputs: the prompts in one tree.
      trainable: an untrained adapter.
      thoughts: of random tokens.
    """

    def __init__(self, flags: list[str]):
        self.flags = flags
        self.config = resolve(configs.load(None, [*FLAGS, *flags]))
        self.agent = make_agent(self.config)
        assert isinstance(self.agent.policy, ThinkingPolicy)
        thinking = self.agent.policy.thinking._replace(stops=())
        self.policy = dataclasses.replace(self.agent.policy, thinking=thinking)
        self.inputs = packed(self.config, self.agent)
        self.trainable = jax.jit(self.policy.init)(jax.random.key(0))
        shape = self.inputs.lengths.size, thinking.thoughts, thinking.room
        tokens = np.random.default_rng(0).integers(5, self.policy.config.vocab_size, shape)
        lengths = np.full(shape[:2], thinking.room, np.int32)
        self.thoughts = Thoughts(tokens.astype(np.int32), lengths)


def packed(config: Config, agent: Agent, **changed: Any) -> PackedPrompts:
    """The prompts in one tree, or with other settings of the prompter in several."""
    prompter = agent.prompter
    assert isinstance(prompter, Prompter)
    assert agent.model is not None
    settings = {"max_nodes": prompter.max_nodes, "thinking": prompter.thinking} | changed
    condition = Condition(training_game(config), agent.presentation)
    inputs = Prompter(agent.model, prompter.template, **settings).pack([[condition]])
    return jax.tree.map(lambda leaf: leaf[0], inputs)


def total(policy: ThinkingPolicy, trainable: Any, frozen: Any, inputs: Any, thoughts: Any):
    """A number that depends on all that is read of thoughts."""
    reading = policy.bind(frozen, inputs).read(trainable, thoughts)
    return jnp.sum(reading.answers) + jnp.sum(reading.tokens)


def in_turns(kinds: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Wall times of each."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for function in kinds.values():
        jax.block_until_ready(function())
    for _ in range(REPEATS):
        for name, function in kinds.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: spread(taken) for name, taken in times.items()}


class FlatPolicy(ThinkingPolicy):
    """What reads a batch of thoughts of full length, each behind its own prompt."""

    def bind(self, frozen: Any, prompts: PackedPrompts) -> "FlatModel":
        return FlatModel(self, frozen, prompts)


class FlatModel(ThinkingModel):
    def _normalisers(self, hidden: jax.Array, used: jax.Array) -> jax.Array:
        """All of them at once: a condition for each of a batch would copy the embedding for it."""
        return self.model().log_sum_exp(hidden[:, None], self.policy.max_logits)[:, 0]


def against_flat(measured: Measured) -> dict[str, Any]:
    """The same gradient from one tree, and from every thought behind a copy of its prompt.

    The copies are read in batches of one thought of each prompt, whose gradients are added, so that
    there is memory for them.
    """
    policy, inputs, thoughts = measured.policy, measured.inputs, measured.thoughts
    alone = policy.thinking._replace(thoughts=1)
    assert inputs.branches is not None
    longest = int(inputs.lengths.max()) + inputs.branches.slots.shape[-1]
    rows = packed(measured.config, measured.agent, thinking=alone, max_nodes=longest)
    assert len(rows.lengths) == inputs.lengths.size, "a tree holds one prompt"
    by_batch = jax.tree.map(lambda x: np.moveaxis(x, 1, 0)[:, :, None, None], thoughts)
    share = policy.max_logits // len(rows.lengths)  # each of a batch has its own pieces
    settings = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    one = FlatPolicy(**settings | {"thinking": alone, "max_logits": share})

    def of_flat(trainable, frozen, rows, by_batch):
        def add(gradient, batch):
            def loss(trainable):
                own = jax.tree.map(lambda leaf: leaf[:, None], rows)
                return jnp.sum(jax.vmap(partial(total, one, trainable, frozen))(own, batch))

            return jax.tree.map(jnp.add, gradient, jax.grad(loss)(trainable)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trainable), by_batch)[0]

    given = measured.trainable, measured.agent.frozen
    tree = jit(jax.grad(partial(total, policy))).lower(*given, inputs, thoughts).compile()
    flat = jit(of_flat).lower(*given, rows, by_batch).compile()
    ours, theirs = tree(*given, inputs, thoughts), flat(*given, rows, by_batch)
    for one_leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one_leaf, other, atol=1e-3 * np.abs(other).max() + 1e-6)
    del ours, theirs
    kinds = {
        "tree": lambda: tree(*given, inputs, thoughts),
        "flat": lambda: flat(*given, rows, by_batch),
    }
    texts = policy.thinking.thoughts * rows.tree.tokens.size
    return {
        "nodes": {"tree": inputs.tree.tokens.size, "flat": texts},
        "temporary_gib": {"tree": temporary_gib(tree), "flat": temporary_gib(flat)},
        "seconds": in_turns(kinds),
    }


def temporary_gib(program: Any) -> float:
    """What a compiled program keeps beside what it is given."""
    return program.memory_analysis().temp_size_in_bytes / 2**30


def against_generate(measured: Measured) -> dict[str, Any]:
    """Sampling every thought, beside `generate` on a copy of the prompt for each."""
    policy, model, inputs = measured.policy, measured.agent.model, measured.inputs
    assert model is not None
    how, key = policy.thinking, jax.random.key(1)
    think = jit(lambda *a: policy.bind(a[0], a[1]).think(a[2], key).tokens)
    given = measured.agent.frozen, inputs, measured.trainable
    texts = zip(np.concatenate(inputs.tokens), np.concatenate(inputs.lengths), strict=True)
    prompts = [ids[:n].tolist() for ids, n in texts for _ in range(how.thoughts)]
    adapter, lora = measured.trainable["adapter"], measured.agent.lora
    copies = lambda: generate(model, prompts, how.tokens, key, Sampling(), adapter, lora)
    seconds = in_turns({"tree": lambda: think(*given), "generate": copies})
    return {"tokens": len(prompts) * how.tokens, "seconds": seconds}


def stages(measured: Measured) -> dict[str, Any]:
    """Where the time goes, and useful FLOPs at the rate of matrix products."""
    policy, inputs, agent = measured.policy, measured.inputs, measured.agent
    config, how, frozen = policy.config, policy.thinking, agent.frozen
    work = ThoughtWork(policy, inputs)
    chunk = jax.tree.map(lambda leaf: leaf[0], inputs)
    assert len(inputs.lengths) == 1, "the prompts are one tree"
    prompts = len(chunk.lengths)
    given = measured.trainable, frozen, inputs, measured.thoughts
    reference = policy.reference_parameters(), *given[1:]

    def prefill(frozen, tree, trainable):
        model = policy.bind(frozen, inputs).model()
        adapter = prepare(trainable["adapter"], config, policy.lora, None)
        return sample._prefill(model, tree, adapter, policy.beside)

    def draw(frozen, hidden, uniforms):
        model = policy.bind(frozen, inputs).model()
        return sample._next(model, uniforms, hidden, policy.max_logits)

    think = jit(lambda *a: policy.bind(a[0], inputs).think(a[1], jax.random.key(1)).tokens)
    rows = prompts * how.thoughts
    hidden = jax.random.normal(jax.random.key(0), (rows, config.embed_dim))
    uniforms = jax.random.uniform(jax.random.key(1), (rows, 1, 2))
    gradient, forward = jit(jax.grad(partial(total, policy))), jit(partial(total, policy))
    prefilling, drawing = jit(prefill), jit(draw)
    programs: dict[str, Callable[[], Any]] = {
        "prefill": lambda: prefilling(frozen, chunk.alone.tree, measured.trainable),
        "draw": lambda: drawing(frozen, hidden, uniforms),
        "sampling": lambda: think(frozen, measured.trainable),
        "forward": lambda: forward(*given),
        "gradient": lambda: gradient(*given),
        "reference": lambda: forward(*reference),
    }
    rates = [matmul_rate()]
    taken = {name: float(np.median(timed(run, REPEATS))) for name, run in programs.items()}
    rate = max(*rates, matmul_rate())  # the machine may have been busy the first time
    draws = (how.room - 1) * taken["draw"]
    steps = taken["sampling"] - taken["prefill"] - draws
    found = {
        "prompts, once": (taken["prefill"], work.prefill),
        f"{how.room - 1} tokens of {rows} thoughts: blocks": (steps, work.steps),
        f"{how.room - 1} tokens of {rows} thoughts: vocabulary": (draws, work.draws),
        "tree and vocabulary, forward": (taken["forward"], work.read),
        "the same, backward": (taken["gradient"] - taken["forward"], work.back),
        "the same of the untrained model": (taken["reference"], work.reference),
    }
    learning = taken["gradient"] + taken["reference"]
    return {
        "matmul_gflops": rate / 1e9,
        "stages": {
            name: {"seconds": seconds, "gflop": flops / 1e9, "share": flops / seconds / rate}
            for name, (seconds, flops) in found.items()
        },
        "useful_rate": {
            "sampling": (work.prefill + work.steps + work.draws) / taken["sampling"] / rate,
            "update": (work.read + work.back + work.reference) / learning / rate,
        },
    }


class ThoughtWork:
    """Useful FLOPs of sampling thoughts of full length and of learning from them.

    Those of a tree are counted as in `roofline.Work`. The untrained model has no adapter. A token's
    distribution takes a product with the embedding, and its gradient another.
    """

    def __init__(self, policy: ThinkingPolicy, inputs: PackedPrompts):
        config, how = policy.config, policy.thinking
        prompts, rows = inputs.lengths.size, inputs.lengths.size * how.thoughts
        table = 2 * config.embed_dim * config.vocab_size
        tree = Work(policy, inputs)
        head = tree.head[0] + table * (prompts + rows * (how.room - 1))
        self.read = tree.forward[0] + head
        self.back = tree.backward[0] - tree.head[0] + head
        self.reference = self.read - tree.of_adapters
        assert inputs.alone is not None
        # The first token is drawn once for all thoughts of a prompt.
        alone = inputs._replace(tree=inputs.alone.tree, nodes=inputs.alone.paths)
        self.prefill = Work(policy, alone).forward[0] + table * prompts
        # Attention, to prompts of a hundred tokens, is little beside the layers.
        self.steps = (how.room - 1) * rows * tree.of_a_token
        self.draws = (how.room - 1) * rows * table


def updates(measured: Measured) -> dict[str, Any]:
    """Whole updates as they are trained, thoughts ending where they do."""
    step = Updates([(measured.config, measured.agent)])
    step()
    return {"seconds": spread(step() for _ in range(REPEATS))}


def episodes(measured: Measured) -> dict[str, Any]:
    """Updates of few and of many episodes, with shorter and fewer thoughts."""
    flags = [*FLAGS, *SHORT, *measured.flags]
    configurations = {
        n: resolve(configs.load(None, [*flags, "--env.episodes", str(n)])) for n in EPISODES
    }
    agent = make_agent(configurations[EPISODES[0]])
    kinds = {str(n): Updates([(own, agent)]) for n, own in configurations.items()}
    return {"seconds": in_turns(kinds)}


PARTS = {
    "gradient": against_flat,
    "sampling": against_generate,
    "stages": stages,
    "update": updates,
    "episodes": episodes,
}


def main() -> None:
    flags, parts = sys.argv[1:], list(PARTS)
    results: dict[str, Any] = {}
    if "--part" in flags:
        at = flags.index("--part")
        parts = [flags[at + 1]]
        del flags[at : at + 2]
        results = read("thinking") if is_measured("thinking") else {}
    measured = Measured(flags)
    how = measured.policy.thinking
    results |= {"versions": versions("jax", "jaxlib"), "prompts": measured.inputs.lengths.size}
    results |= {"thoughts": how.thoughts, "tokens": how.tokens}
    for part in parts:
        results[part] = PARTS[part](measured)
        print(part, results[part], file=sys.stderr, flush=True)
        jax.clear_caches()
    write("thinking", results)


if __name__ == "__main__":
    main()
