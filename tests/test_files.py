"""Files are whole or absent, and a disk that cannot take them is one sentence."""

import pytest

from benchmark.errors import UserError
from benchmark.files import write_atomically, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.csv"
    write_text(path, "old\n")

    def half(temporary):
        temporary.write_text("ne")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_atomically(path, half)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path):
    def full(temporary):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"result\.csv could not be written: No space left on device; free space"):
        write_atomically(tmp_path / "result.csv", full)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "file" / "result.csv", "x")
