"""Runs docs/tutorial.ipynb from its first cell and keeps what it says in it.

    python scripts/tutorial.py [--tag tabular]

With a tag only the cells that have it run, and nothing is written. Needs a Jupyter kernel, which
the extra `dev` installs.
"""

import argparse
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from jaxmoral.errors import UserError

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
LARGEST = 100_000  # bytes of an output that is kept
PATIENCE = 1800  # seconds for a cell


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    """The notebook's cells that have this tag."""
    cells = [deepcopy(cell) for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return NotebookNode(notebook | {"cells": cells})


def run(notebook: NotebookNode) -> None:
    """Runs all cells in an empty folder; their outputs are in the notebook afterwards.

    Raises:
      UserError: there is no such kernel, or a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=PATIENCE, resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        except NoSuchKernel as missing:
            raise UserError(
                f"tutorial: there is no Jupyter kernel {missing.name}; pip install ipykernel"
            ) from None
        except CellExecutionError as failed:
            raise UserError(f"tutorial: a cell fails ({failed.ename}: {failed.evalue})") from None


def tidy(notebook: NotebookNode) -> None:
    """Leaves out progress bars, times of execution and pictures that are too large."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, data in list(output.get("data", {}).items()):
                if len(data) > LARGEST:
                    del output.data[kind]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", help="run only the cells with this tag and write nothing")
    asked = parser.parse_args(arguments)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    try:
        run(tagged(notebook, asked.tag) if asked.tag else notebook)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.tag is None:
        tidy(notebook)
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
