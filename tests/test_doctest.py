"""Every class and function of the package root shows how it is used, and that is what happens."""

import doctest
from unittest.mock import patch

import numpy as np
import pytest

import jaxmoral

CALLABLE = [name for name in jaxmoral.__all__ if callable(getattr(jaxmoral, name))]
ASK_THE_MODEL = ("choose", "evaluate_scenarios")


@pytest.mark.parametrize("name", [name for name in CALLABLE if name not in ASK_THE_MODEL])
def test_an_example_does_what_it_says(name, tmp_path):
    run_example(name, tmp_path)


@pytest.mark.parametrize("name", ASK_THE_MODEL)
@pytest.mark.usefixtures("real")
def test_an_example_that_asks_the_model_does_what_it_says(name, tmp_path):
    run_example(name, tmp_path)


def run_example(name, folder):
    shown = getattr(jaxmoral, name).__doc__
    names = {"jaxmoral": jaxmoral, "np": np, "folder": folder / "run"}
    example = doctest.DocTestParser().get_doctest(shown, names, name, None, None)
    assert example.examples
    said = []
    with patch.dict(jaxmoral.GAMES):
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, "".join(said)


def test_what_has_no_example_is_a_registry():
    registries = {name for name in jaxmoral.__all__ if not callable(getattr(jaxmoral, name))}
    assert registries == {"GAMES", "OPPONENTS", "REWARDS"}
