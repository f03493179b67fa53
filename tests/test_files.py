"""A file that is replaced is the old one or the new one, and nothing stays beside it."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from jaxmoral.errors import UserError
from jaxmoral.files import PART, replacing
from jaxmoral.learning.bucket import local_path, place_of
from jaxmoral.learning.run_folder import check_run_folder
from jaxmoral.reporting.canvas import save


def test_the_new_file_stands_where_the_old_one_was(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
        assert scratch.parent == tmp_path  # else the move is a copy, which can be cut off
        assert scratch.name.endswith(PART)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def cut_off(path):
    with replacing(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", ["old", None])
def test_one_that_is_cut_off_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "a.json"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt):
        cut_off(path)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == (
        {"a.json": before} if before else {}
    )


def test_a_picture_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """A full disk leaves the old one; names may hold what TeX would read."""
    figure = plt.figure()
    figure.suptitle(r"$\bar$ and $x_1$")
    path = save((figure, {}), tmp_path / "a.png")
    whole = path.read_bytes()
    assert whole.startswith(b"\x89PNG")

    def full(file, **_):
        Path(file).write_bytes(whole[:100])
        raise OSError(28, "No space left on device")

    other = plt.figure()
    monkeypatch.setattr(other, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        save((other, {}), path)
    plt.close(other)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b"])
def test_paths_in_which_checkpoints_cannot_be_read_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="--output-dir: .* holds .* choose another"):
        check_run_folder(tmp_path / name, resume=False)
    check_run_folder(tmp_path / "lr(0.1)", resume=False)


def test_an_empty_path_is_no_folder():
    for read in (place_of, local_path):
        with pytest.raises(argparse.ArgumentTypeError, match="names no"):
            read("")
