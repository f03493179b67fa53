"""A file that is replaced is the old one or the new one, and nothing stays beside it."""

import pytest

from jaxmoral.files import PART, replacing


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
