"""The command `python -m jaxmoral.export`: take a trained agent elsewhere.

`peft` writes a LoRA adapter for PEFT, vLLM and transformers; `merged` a whole Hugging Face model
with the adapter added to its weights; `orbax` the trained parameters as a plain Orbax checkpoint.
"""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmoral.errors import UserError, run_command
from jaxmoral.files import scratch_beside
from jaxmoral.learning.bucket import local_path
from jaxmoral.learning.plugins import add_plugins, name_plugins
from jaxmoral.learning.run_folder import check_alone

if TYPE_CHECKING:
    from jaxmoral.measuring.opened import OpenRun
    from jaxmoral.models.load import LoadedModel

FORMATS = ("peft", "merged", "orbax")  # of a run; of a model nobody tuned only merged


def export(run: Path, kind: str, output: Path, *, with_card: bool = False) -> "LoadedModel":
    """Writes a run's newest parameters to a new folder, all of it or nothing.

    Args:
      run: a run folder.
      kind: one of `FORMATS`.
      output: the folder.
      with_card: beside an adapter for PEFT, a model card.

    Returns:
      The base model.

    Raises:
      UserError: there is no such run, its policy is no model, or the folder exists.
    """
    if kind not in FORMATS:
        raise UserError(f"--format: unknown {kind!r}; choose from {', '.join(FORMATS)}")
    if output.exists():  # said before a model is loaded
        raise UserError(f"{output} exists; choose another --output")
    check_alone(run)
    from jaxmoral.measuring.opened import open_run  # slow to import, as the others
    from jaxmoral.models.merged import save_merged

    opened = open_run(run)
    model, lora = opened.trained.agent.model, opened.trained.agent.lora
    if model is None or lora is None:
        raise UserError(f"{run} holds a tabular policy; only a model can be exported")
    if not opened.trained.is_finite():
        raise UserError(f"{run}: its training diverged: its parameters are no numbers")
    trainable = opened.trained.trainable
    with new_folder(output) as scratch:
        if kind == "orbax":
            import orbax.checkpoint as ocp

            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((scratch / "params").resolve(), trainable)
        elif kind == "peft":
            _write_peft(scratch, opened)
            if with_card:
                (scratch / "README.md").write_text(_card(run, opened), encoding="utf-8")
        else:
            save_merged(scratch, model, trainable["adapter"], lora)
    return model


def _write_peft(folder: Path, opened: "OpenRun") -> None:
    import numpy as np
    import safetensors.numpy

    from jaxmoral.models.peft import save_peft

    agent, trainable = opened.trained.agent, opened.trained.trainable
    model, lora = agent.model, agent.lora
    assert model is not None
    assert lora is not None
    adapter = trainable["adapter"]
    save_peft(folder, model.config, adapter, lora, model.source, module=model.module)
    head = {name: np.asarray(x) for name, x in trainable["value_head"].items()}
    safetensors.numpy.save_file(head, folder / "value_head.safetensors")


def _card(run: Path, opened: "OpenRun") -> str:
    from jaxmoral.measuring.runs import read_run
    from jaxmoral.reporting.card import card

    command = f"python -m jaxmoral.export --run {shlex.quote(run.name)} --card"
    update = int(opened.trained.state.update)
    return card(read_run(run), opened.policy(), update=update, command=command)


def export_base(source: str, output: Path) -> None:
    """Writes an untuned model as a Hugging Face model, on which exported adapters can be loaded."""
    from jaxmoral.models.load import load  # slow to import
    from jaxmoral.models.lora import NO_LORA
    from jaxmoral.models.merged import save_merged

    with new_folder(output) as scratch:
        save_merged(scratch, load(source), {}, NO_LORA)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that is `output` once it is complete; raises UserError if that exists already."""
    if output.exists():
        raise UserError(f"{output} exists; choose another --output")
    with scratch_beside(output) as scratch:
        yield scratch
        scratch.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmoral.export", description="Writes a trained agent for other tools."
    )
    parser.add_argument("--run", type=local_path, help="a run folder")
    parser.add_argument("--model", help="instead: a model's name, file, folder or hub id, untuned")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of a run: peft (default), merged, orbax; of a model: merged",
    )
    parser.add_argument("--output", type=local_path, required=True, help="the folder to create")
    parser.add_argument(
        "--card", action="store_true", help="of a run, peft: with a model card (README.md)"
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="of a run, peft: upload the folder to this hub repository, made private if there is"
        " none; needs a token (hf auth login, or HF_TOKEN)",
    )
    add_plugins(parser)
    arguments = parser.parse_args()
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    name_plugins(arguments.plugin)
    if (arguments.run is None) == (arguments.model is None):
        raise UserError("give either --run FOLDER or --model NAME")
    output = arguments.output
    shares = arguments.card or arguments.push
    if shares and (arguments.run is None or arguments.format not in (None, "peft")):
        raise UserError("--card, --push: are for a run's adapter in the format peft")
    if arguments.model is not None:
        if arguments.format not in (None, "merged"):
            raise UserError(f"--format: {arguments.format} is for runs; a model is exported merged")
        export_base(arguments.model, output)
        print(f"wrote {arguments.model} to {output}")
        return
    kind = arguments.format or "peft"
    if arguments.push:
        from jaxmoral.models.upload import check_push, push

        check_push(arguments.push)
    source = export(arguments.run, kind, output, with_card=bool(shares)).source
    print(f"wrote {kind} to {output}")
    if arguments.push:
        print(f"uploaded to {push(output, arguments.push)}")
    if kind == "peft":
        from jaxmoral.models.peft import named_base

        if named_base(source) is None:
            print(
                "its base, for PEFT: python -m jaxmoral.export"
                f" --model {shlex.quote(source)} --output base"
            )


if __name__ == "__main__":
    main()
