"""What an import costs: a game loads no language model, training no plotting library."""

import subprocess
import sys

import pytest

import jaxmoral

HEAVY = {"jax", "transformers", "orbax", "matplotlib", "pandas", "flax", "torch"}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import jaxmoral", HEAVY),
        ("from jaxmoral import get_game; get_game('ipd')", HEAVY),
        ("import jaxmoral; jaxmoral.parse({})", HEAVY),
        ("from jaxmoral import OPPONENTS, REWARDS", HEAVY - {"jax"}),
        ("from jaxmoral import train_agent", {"matplotlib"}),
    ],
)
def test_an_import_loads_what_it_needs(code, unwanted):
    code += f"; import sys; sys.exit(' '.join({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip()


def test_every_name_of_the_package_is_there():
    assert {*jaxmoral.__all__} <= {*dir(jaxmoral)}
    for name in jaxmoral.__all__:
        assert getattr(jaxmoral, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jaxmoral.nonsense
