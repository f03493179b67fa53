"""What an import costs: a game loads no language model, training no plotting library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmoral
from jaxmoral.config import Config, save

HEAVY = {"jax", "transformers", "orbax", "matplotlib", "pandas", "flax", "torch"}


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("commands", "unwanted"),
    [
        (
            """train --help; sweep --help; export --help; report --help; compare --help; ask --help
            train --list games; train --list opponents
            sweep no.yaml --output-dir no; export --run no --output no; ask --run no
            report no; compare no --with no""",
            HEAVY,
        ),
        (
            """evaluate --help; tournament --help; play --help; chat --help
            train --output-dir no --zzz 1; train --output-dir no --resume; evaluate
            evaluate --run no; play --run no; chat --run no; tournament nobody --output-dir no
            train --output-dir no --model.source tabular --env.opponent titfortatt
            train --output-dir no --env.game chess; train --output-dir no --reward.name [game,foo]
            train --dry-run --prompt.labels [a,a]; evaluate --model tabular --env.game chess
            evaluate --run made --games chess; evaluate --run made --suites nosuch
            evaluate --run many --opponents titfortatt; evaluate --run made --thinking 3""",
            HEAVY - {"jax"},
        ),
    ],
)
def test_what_a_command_refuses_or_explains_costs_no_model(tmp_path, commands, unwanted):
    for folder in ("made", "many/seed=0"):  # a run of a model that nobody loads
        (tmp_path / folder).mkdir(parents=True)
        save(Config(), tmp_path / folder / "config.yaml")
    (tmp_path / "many" / "members.yaml").write_text("[seed=0]")
    code = f"""
import importlib, sys
for command in {commands.replace(chr(10), ";").split(";")!r}:
    name, *sys.argv[1:] = command.split()
    try:
        importlib.import_module(f"jaxmoral.{{name}}").main()
    except SystemExit as end:
        said = {unwanted!r} & set(sys.modules)
        assert end.code in (0, 2, None), (command, end.code)
        assert not said, (command, said)
    else:
        raise AssertionError(command)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_package_is_there():
    assert {*jaxmoral.__all__} <= {*dir(jaxmoral)}
    for name in jaxmoral.__all__:
        assert getattr(jaxmoral, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jaxmoral.nonsense


def test_text_files_are_utf_8_whatever_the_machines_locale_is():
    package = Path(jaxmoral.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            of_path = isinstance(node.func, ast.Attribute)
            name = node.func.attr if of_path else getattr(node.func, "id", "")
            mode = node.args[0 if of_path else 1 :][:1]
            opens = name == "open" and not (mode and "b" in ast.literal_eval(mode[0]))
            if opens or (of_path and name in ("read_text", "write_text")):
                told = {word.arg for word in node.keywords}
                assert "encoding" in told, f"{path}, line {node.lineno}: {ast.unparse(node)}"
