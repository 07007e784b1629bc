"""`fusestore corpus` with paths and names that need care."""

import os
from pathlib import Path

import pytest

from fusestore.corpus.corpus import open_corpus
from tests.helpers.command import Command


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


def test_brackets_are_part_of_paths(command, tmp_path):
    store, folder = tmp_path / "data [v1]", tmp_path / "folder [x]"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "b.txt").write_text(" ")
    (folder / "c.pdf").write_text("x")
    arguments = ["corpus", "--store", store, "--max-length", "none"]
    outcome = command.succeeds(*arguments, f"{folder}/*.txt")
    assert outcome.out == (
        f"Built corpus corpus: 1 document, 4 bytes in {store}; 1 blank ones left out\n"
    )
    outcome = command.succeeds(*arguments, folder)
    assert f"Not read in {folder}: 1 .pdf.\n" in outcome.err
    assert outcome.out.startswith("Already there: corpus corpus")
    corpus = open_corpus(store, "corpus")
    assert list(corpus.text_batches()) == [["text"]]
    assert corpus.split_documents("train").tolist() == [0]
    assert str(store) in command.succeeds("ls", "--store", store).out


def test_text_and_split_column_differ(command, tmp_path):
    outcome = command(
        *["corpus", "a.jsonl", "--store", tmp_path, "--max-length", "none"],
        *["--text-column", "text", "--split-column", "text"],
    )
    assert outcome.code == 2
    assert "--split-column are both 'text'" in " ".join(outcome.err.split())


def test_help_names_the_formats(command):
    said = " ".join(command.succeeds("corpus", "--help").out.split())
    for name in (".jsonl", ".tsv", ".arrow", ".zst", "hf", "datasets package"):
        assert name in said


def test_a_path_that_is_not_utf_8(command, tmp_path):
    store = tmp_path / os.fsdecode(b"st\xf6re")
    try:
        store.mkdir()
    except OSError:
        pytest.skip("this filesystem has only names in UTF-8")
    Path(store / os.fsdecode(b"\xe4.txt")).write_text("text")
    arguments = ["corpus", f"{store}/*.txt", "--store", store / "s", "--max-length", "none"]
    assert rf"in {tmp_path}/st\udcf6re/s" in command.succeeds(*arguments).out
