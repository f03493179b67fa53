"""The notebook: its tabular part runs and says what it said; its outputs are whole and small."""

import ast
import re

import jax
import nbformat
import numpy as np
import pytest
import tutorial

import jaxmoral
from jaxmoral.errors import UserError

NUMBER = re.compile(r"-?\d+\.?\d*")


@pytest.fixture
def notebook():
    return nbformat.read(tutorial.NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell prints and shows as text."""
    found = []
    for output in cell.outputs:
        kept = output.get("text", output.get("data", {}).get("text/plain", ""))
        if output.get("name") != "stderr" and "image/png" not in output.get("data", {}):
            found.append(kept)
    return "".join(found)


@pytest.mark.slow
def test_the_tabular_part_says_what_it_said(notebook, monkeypatch):
    folder = jax.config.values["jax_compilation_cache_dir"]  # the kernel compiles as tests do
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    fresh = tutorial.tagged(notebook, "tabular")
    tutorial.run(fresh)
    kept = [cell for cell in code_cells(notebook) if "tabular" in cell.metadata.tags]
    pictures = 0
    for now, then in zip(code_cells(fresh), kept, strict=True):
        assert now.source == then.source
        words = [NUMBER.sub("#", texts(cell)).split() for cell in (now, then)]
        assert words[0] == words[1]
        numbers = [[float(x) for x in NUMBER.findall(texts(cell))] for cell in (now, then)]
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=0.02, atol=0.06)
        pictures += any("image/png" in output.get("data", {}) for output in now.outputs)
    assert pictures == 2


def test_every_cell_was_run_and_is_small(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.metadata.tags in (["tabular"], ["model"])
        for output in cell.outputs:
            assert output.output_type != "error"
            assert all(len(data) <= tutorial.LARGEST for data in output.get("data", {}).values())
            assert output.get("name") != "stderr"
    assert tutorial.NOTEBOOK.stat().st_size < 300_000
    assert "/tmp" not in tutorial.NOTEBOOK.read_text()


def test_it_uses_the_public_names_alone(notebook):
    for cell in code_cells(notebook):
        source = re.sub(r"^\s*%.*$", "    pass", cell.source, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(source)):
            assert not (isinstance(node, ast.ImportFrom) and node.module.startswith("jaxmoral"))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "jaxmoral" or node.attr in jaxmoral.__all__


def test_a_missing_kernel_is_one_line(notebook):
    notebook.metadata.kernelspec.name = "no-such-kernel"
    with pytest.raises(UserError, match="no Jupyter kernel no-such-kernel; pip install ipykernel"):
        tutorial.run(notebook)
