"""`fusestore distill`: a fusion.toml that is valid whatever the names are, and its run."""

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import AlreadyExistsError
from fusestore.storage.location import Location
from fusestore.workflows.distillation import distillation_toml, write_once
from fusestore.workflows.fusion_config import load_config

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(NAMES, NAMES, st.lists(NAMES, min_size=1), NAMES, st.floats(0, 0.5))
def test_the_file_says_what_was_given(teacher, student, data, store, fraction):
    content = tomllib.loads(distillation_toml(teacher, student, data, store, fraction))
    models = {name: table["model"] for name, table in content["models"].items()}
    assert models == {"teacher": teacher, "student": student}
    assert (content["store"], content["corpus"]["inputs"]) == (store, data)
    assert content["corpus"].get("held_out_fraction", 0) == fraction
    assert ("evaluate_split" in content) == (fraction > 0)


def test_one_command_distills_and_its_file_goes_on(command, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [json.loads(line)["text"] for line in (job / "texts.jsonl").read_text().splitlines()]
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    arguments = [
        *("distill", str(job / "wide"), str(job / "small"), "texts"),
        *("--held-out-fraction", "0.2"),
    ]
    assert "distill.toml" in command.succeeds(*arguments, "--dry-run").out
    assert not (tmp_path / "distill.store").exists()
    config = load_config(Location.parse("distill.toml"))
    assert config.captured == ["teacher"]
    assert [recipe.target for recipe in config.fuse.values()] == ["student"]
    summary = command.succeeds(*arguments, "--json").json
    assert [model["name"] for model in summary["models"]] == ["distilled"]
    again = command.succeeds("run", "distill.toml")
    assert "model distilled: already there" in again.out + again.err
    # The file may be changed, and is then not written again.
    with (tmp_path / "distill.toml").open("a") as file:
        file.write("# changed\n")
    assert "fusestore run distill.toml" in command.fails(*arguments)


def test_a_split_without_documents_stops_before_a_capture(command, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("Fellow citizens of the Senate. " * 20)
    failed = command.fails("distill", str(job / "wide"), str(job / "small"), "one.txt")
    assert "no split 'held_out'" in failed
    assert not (tmp_path / "distill.store" / "caches").exists()


def test_another_file_is_left(tmp_path):
    file = tmp_path / "distill.toml"
    write_once(str(file), "store = 'a'\n")
    write_once(str(file), "store = 'a'\n")
    with pytest.raises(AlreadyExistsError, match="--file"):
        write_once(str(file), "store = 'b'\n")
    assert file.read_text() == "store = 'a'\n"
