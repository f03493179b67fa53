"""The command `python -m jaxmoral.export`: take a trained agent elsewhere.

`peft` writes a LoRA adapter for PEFT, vLLM and transformers; `merged` a whole Hugging Face model
with the adapter added to its weights; `orbax` the trained parameters as a plain Orbax checkpoint.
"""

import argparse
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
import transformers
from flax import nnx

from jaxmoral.errors import UserError, run_command
from jaxmoral.evaluation import load_run
from jaxmoral.gemma.config import GemmaConfig
from jaxmoral.gemma.huggingface import LINEAR_NAMES, norm_names
from jaxmoral.gemma.load import LoadedModel, load
from jaxmoral.gemma.lora import Adapter, Lora
from jaxmoral.gemma.peft import merge, named_base, save_peft
from jaxmoral.gemma.quantise import dequantise
from jaxmoral.policy import GemmaPolicy

FORMATS = ("peft", "merged", "orbax")  # of a run; of a model nobody tuned only merged


def export(run: Path, kind: str, output: Path) -> LoadedModel:
    """Writes a run's newest parameters to a new folder, all of it or nothing.

    Returns:
      The base model.

    Raises:
      UserError: there is no such run, its policy is not Gemma, or the folder exists.
    """
    if kind not in FORMATS:
        raise UserError(f"--format: unknown {kind!r}; choose from {', '.join(FORMATS)}")
    if output.exists():  # said before a model is loaded
        raise UserError(f"{output} exists; choose another --output")
    config, agent, trainable = load_run(run)
    policy, model = agent.policy, agent.model
    if not isinstance(policy, GemmaPolicy) or model is None:
        raise UserError(f"{run} holds a tabular policy; only Gemma can be exported")
    with new_folder(output) as scratch:
        if kind == "orbax":
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((scratch / "params").resolve(), trainable)
        elif kind == "peft":
            save_peft(scratch, trainable["adapter"], policy.lora, model.source, module=model.module)
            head = {name: np.asarray(x) for name, x in trainable["value_head"].items()}
            safetensors.numpy.save_file(head, scratch / "value_head.safetensors")
        else:
            save_merged(scratch, model, trainable["adapter"], policy.lora)
    return model


def export_base(source: str, output: Path) -> None:
    """Writes an untuned model as a Hugging Face model, on which exported adapters can be loaded."""
    with new_folder(output) as scratch:
        save_merged(scratch, load(source), {}, Lora(1, 1.0, 0.0, ()))


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that is `output` once it is complete; raises UserError if that exists already."""
    if output.exists():
        raise UserError(f"{output} exists; choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=".exporting-"))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp's folders are their owner's alone
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def save_merged(folder: Path, model: LoadedModel, adapter: Adapter, lora: Lora) -> None:
    """Writes a Hugging Face model and tokenizer with the adapter added to the base weights."""
    sizes, tokenizer = model.config, model.tokenizer
    params = nnx.to_pure_dict(model.weights)
    embedding = _full(params["embedding"])
    dtype = embedding.dtype
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (np.asarray(params["final_norm"]["scale"]) - 1).astype(dtype),
    }
    for name, stored in norm_names(sizes).items():
        for layer, scale in enumerate(np.asarray(params["blocks"][name]["scale"])):
            tensors[f"model.layers.{layer}.{stored}.weight"] = (scale - 1).astype(dtype)
    for name, stored in LINEAR_NAMES.items():
        kernel = merge(name, _full(params["blocks"][name]), adapter, lora).astype(dtype)
        for layer, matrix in enumerate(kernel):
            tensors[f"model.layers.{layer}.{stored}.weight"] = np.ascontiguousarray(matrix.T)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    # The class's name in transformers 5 is unknown to earlier versions; all know this one.
    settings = json.loads(named.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    named.write_text(json.dumps(settings, indent=2) + "\n")
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    generation = model.generation or {**tokens, "eos_token_id": model.stop_tokens()}
    stops = {name: generation[name] for name in generation if name == "eos_token_id"}
    described = huggingface_config(sizes, tokenizer) | {"dtype": str(dtype)} | stops
    for name, settings in (("config", described), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")


def _full(matrix: Any) -> np.ndarray:
    """A matrix, or what its codes and scales stand for."""
    return np.asarray(dequantise(**matrix) if isinstance(matrix, dict) else matrix)


def huggingface_config(sizes: GemmaConfig, tokenizer: Any) -> dict[str, Any]:
    """`config.json` of the text model with these sizes."""
    kinds = {
        "gemma": (transformers.GemmaConfig, "GemmaForCausalLM"),
        "gemma2": (transformers.Gemma2Config, "Gemma2ForCausalLM"),
        "gemma3": (transformers.Gemma3TextConfig, "Gemma3ForCausalLM"),
    }
    make, architecture = kinds[sizes.family]
    near = {"rope_type": "default", "rope_theta": sizes.rope_base_local}
    wide = {"rope_type": "default", "rope_theta": sizes.rope_base_global}
    for rope, scale in ((near, sizes.rope_scale_local), (wide, sizes.rope_scale)):
        if scale != 1.0:
            rope |= {"rope_type": "linear", "factor": scale}
    settings: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.mlp_dim,
        "rms_norm_eps": sizes.rms_eps,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": wide,
    }
    if sizes.family != "gemma":
        names = {True: "full_attention", False: "sliding_attention"}
        settings |= {
            "sliding_window": sizes.sliding_window,
            "layer_types": [names[is_global] for is_global in sizes.global_layers],
            "query_pre_attn_scalar": round(sizes.query_scale**-2),
            "attn_logit_softcapping": sizes.attention_softcap,
            "final_logit_softcapping": sizes.final_softcap,
        }
    if sizes.family == "gemma3":
        settings["rope_parameters"] = {"full_attention": wide, "sliding_attention": near}
    return make(**settings).to_dict() | {"architectures": [architecture]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.export", description="Writes a trained agent for other tools."
    )
    parser.add_argument("--run", type=Path, help="a run folder")
    parser.add_argument("--model", help="instead: a model's name, file, folder or hub id, untuned")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of a run: peft (default), merged, orbax; of a model: merged",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to create")
    arguments = parser.parse_args()

    def run() -> None:
        if (arguments.run is None) == (arguments.model is None):
            raise UserError("give either --run FOLDER or --model NAME")
        output = arguments.output
        if arguments.model is not None:
            if arguments.format not in (None, "merged"):
                raise UserError(
                    f"--format: {arguments.format} is for runs; a model is exported merged"
                )
            export_base(arguments.model, output)
            print(f"wrote {arguments.model} to {output}")
            return
        kind = arguments.format or "peft"
        source = export(arguments.run, kind, output).source
        print(f"wrote {kind} to {output}")
        if kind == "peft" and named_base(source) is None:
            print(
                "its base, for PEFT: python -m jaxmoral.export"
                f" --model {shlex.quote(source)} --output base"
            )

    run_command(run)


if __name__ == "__main__":
    main()
