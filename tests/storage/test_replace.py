"""Files and folders that are replaced whole, also when the process ends in the middle."""

import pytest

from fusestore.storage import replace
from fusestore.storage.replace import (
    created_folder,
    remove_replaced,
    replaced_file,
    replaced_folder,
    whole_folder,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "weights.bin"
    with replaced_file(path) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()

    def fail():
        with replaced_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]


def test_what_a_killed_writer_put_beside_its_file_goes_with_the_next(tmp_path):
    """safetensors writes under a random name beside the file, and renames that."""
    with replaced_file(tmp_path / "x") as temporary:
        place = temporary.parent
        temporary.write_bytes(b"first")
    place.mkdir()
    (place / ".tmpAbCdEf").write_bytes(b"half")
    with replaced_file(tmp_path / "x") as temporary:
        temporary.write_bytes(b"whole")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_temporary_file_does_not_match_the_patterns_of_its_name(tmp_path):
    with replaced_file(tmp_path / "best-3.safetensors") as temporary:
        temporary.write_bytes(b"")
        assert not list(tmp_path.rglob("*best*"))


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "work" / "checkpoint"
    for content in ("old", "new"):
        with replaced_folder(folder) as temporary:
            (temporary / f"{content}.txt").write_text(content)
    assert whole_folder(folder) == folder
    assert [file.name for file in folder.iterdir()] == ["new.txt"]
    assert [file.name for file in folder.parent.iterdir()] == ["checkpoint"]


def test_a_folder_is_found_after_a_crash_between_the_renames(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    assert whole_folder(folder) is None
    with replaced_folder(folder) as temporary:
        (temporary / "old.txt").write_text("old")

    def crash(_folder):
        if not folder.exists():
            raise KeyboardInterrupt

    rename = type(folder).rename

    def rename_once(self, target):
        result = rename(self, target)
        crash(folder)
        return result

    monkeypatch.setattr(type(folder), "rename", rename_once)
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
    monkeypatch.undo()
    assert not folder.exists()
    assert [file.name for file in whole_folder(folder).iterdir()] == ["old.txt"]
    with replaced_folder(folder) as temporary:
        (temporary / "newer.txt").write_text("newer")
    assert [file.name for file in whole_folder(folder).iterdir()] == ["newer.txt"]
    remove_replaced(folder)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(replace, "_sync_file", lambda path: synced.append(path.name))
    with replaced_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("a")
        (temporary / "b").write_text("b")
    assert sorted(synced) == ["a", "b"]


def test_a_folder_is_created_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "model"

    def write(content, *, fails=False):
        with created_folder(folder) as temporary:
            (temporary / "weights").write_text(content)
            assert content == "second" or not folder.exists()
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write("half", fails=True)
    assert list(folder.parent.iterdir()) == []
    write("first")
    # Another process was quicker: its folder stays.
    write("second")
    assert (folder / "weights").read_text() == "first"
    assert list(folder.parent.iterdir()) == [folder]
