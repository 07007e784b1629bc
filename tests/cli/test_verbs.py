"""Each stage as a verb of its own, and what the verbs print."""

import json
from pathlib import Path

import jsonschema
import pytest

from fusestore.storage.location import Location
from tests.helpers.stage_commands import stages
from tests.helpers.tiny_job import hashes, write_fusion


def rows_of(dataset):
    return [{key: value.tolist() for key, value in dataset[i].items()} for i in range(len(dataset))]


def fits(content, name):
    """Check what a command printed against its published schema."""
    schema = Path(__file__).parents[2] / f"schemas/output-{name}.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_bytes())).validate(content)


SCHEMAS = {"small": "capture", "wide": "capture", "baseline": "train", "fused": "train"}


def test_renamed_artifacts_are_found_again(command, job, store, tmp_path):
    """The same file with the new names makes nothing."""
    before = hashes(Location.parse(store))
    for path, name in (
        ("corpus/addresses", "places"),
        ("cache/wide", "breit"),
        ("alignment/wide--small", "breit--small"),
        ("model/fused", "student"),
    ):
        command.succeeds("mv", path, name, "--store", store)
    fusion = write_fusion(
        tmp_path,
        job,
        str(store),
        ('name = "addresses"', 'name = "places"'),
        ("[models.wide]", "[models.breit]"),
        ('["small", "wide"]', '["small", "breit"]'),
        ("[train.runs.fused]", "[train.runs.student]"),
    )
    said = command.succeeds("run", fusion).err
    assert said.count("already there") == 7
    assert "done" not in said
    assert sorted(hashes(Location.parse(store)).values()) == sorted(before.values())
    planned = command.succeeds("run", fusion, "--dry-run", "--json").json["stages"]
    assert {stage["state"] for stage in planned} == {"already there"}


@pytest.mark.slow
def test_stage_by_stage_gives_what_one_run_gives(command, job, first_store, tmp_path):
    """Equal but for the sizes of shards and chunks, which not every verb has an option for."""
    from fusestore import open_fused

    store = tmp_path / "by-hand"
    for stage, arguments in stages(job, store).items():
        told = command.succeeds(*arguments, "--json").json
        assert told["built"] is True
        if stage in SCHEMAS:
            fits(told, SCHEMAS[stage])
    for arguments in stages(job, store).values():
        assert command.succeeds(*arguments, "--json").json["built"] is False
    assert "Already there" in command.succeeds(*stages(job, store)["wide"]).out
    ours, theirs = open_fused(store, "mince"), open_fused(first_store, "mince")
    assert rows_of(ours) == rows_of(theirs)
    by_hand, by_run = hashes(Location.parse(store)), hashes(Location.parse(first_store))
    weights = ("models/baseline/model.safetensors", "models/fused/model.safetensors")
    for part in ("corpora", "vocabularies", "vocabulary_maps", *weights):
        chosen = {name: value for name, value in by_run.items() if name.startswith(part)}
        assert chosen
        assert chosen == {name: value for name, value in by_hand.items() if name.startswith(part)}


def test_run_prints_tables_or_json(command, job, store, tmp_path):
    fusion = write_fusion(tmp_path, job, str(store))
    shown = command.succeeds("run", fusion)
    assert "Bits per byte of held-out text" in shown.out
    assert "already there" in shown.err
    summary = command.succeeds("run", fusion, "--json").json
    assert [source["name"] for source in summary["fusions"][0]["sources"]] == ["small", "wide"]
    assert [model["name"] for model in summary["models"]] == ["baseline", "fused"]


def test_ls_lists_and_show_describes(command, store):
    listed = command.succeeds("ls", "--store", store, "--json").json["artifacts"]
    assert {"cache/wide": "complete"}.items() <= {a["artifact"]: a["state"] for a in listed}.items()
    assert {a["complete"] for a in listed} == {True}
    assert len([a for a in listed if not a["artifact"].startswith("vocabulary/")]) == 8
    assert "wide--small" in command.succeeds("ls", "--store", store).out
    for artifact in (entry["artifact"] for entry in listed):
        shown = command.succeeds("show", artifact, "--store", store, "--json").json
        assert shown["manifest"]["format_version"] == 1
    rows = command.succeeds(
        "show", "cache/wide", "--store", store, "--document", "2", "--rows", "5", "--json"
    ).json["rows"]
    assert len(rows) == 5
    message = command.fails("show", "cache/absent", "--store", store)
    assert "cache/absent" in message
    assert "cache/wide" in message


def test_help_names_every_verb(command):
    shown = command.succeeds("--help").out
    stages = ("corpus", "capture", "align", "fuse", "forecast", "train", "merge", "run")
    for verb in (*stages, "ls", "show", "verify"):
        assert verb in shown
        assert "--store" in command.succeeds(verb, "--help").out
    assert command.succeeds("--version").out.startswith("fusestore ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "x.toml", "--stoer", "y"],
        ["capture", "x", "--store", "y", "--name", "z", "--top-k", "0"],
        ["corpus", "x", "--store", "y", "-t", "z", "--max-documents", "many"],
        ["ls", "--store", "y", "--storage-option", "novalue"],
        ["train", "x", "--store", "y", "--evaluate", "nosplit"],
        ["merge", "x", "z", "--store", "y", "--evaluate", "nosplit"],
    ],
)
def test_wrong_usage_ends_with_2(command, arguments):
    outcome = command(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback(command, tmp_path):
    outcome = command("--debug", "run", tmp_path / "absent.toml")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("Error: ")


def test_json_stays_clean_while_progress_is_told(command, job, tmp_path):
    """Progress goes to standard error, so standard output is JSON alone."""
    outcome = command.succeeds(*stages(job, tmp_path / "store")["corpus"], "--json")
    assert json.loads(outcome.out)["corpus"] == "addresses"
    fits(outcome.json, "corpus")
    assert "Reading and splitting" in outcome.err


def test_a_statistical_map_is_made_used_and_kept(command, job, store):
    statistical = ["--vocabulary", "statistical", "--json"]
    align, fuse = ([*stages(job, store)[verb], *statistical] for verb in ("align", "fuse"))
    fuse[fuse.index("--name") + 1] = "counted"
    assert "--vocabulary statistical" in command.fails(*fuse)
    assert [command.succeeds(*align).json["built"] for _ in range(2)] == [True, False]
    (folder,) = store.glob("vocabulary_maps/*-statistical-*")
    made = json.loads((folder / "manifest.json").read_text())
    assert folder.name.endswith(made["fingerprint"]["corpus_digest"][:16])
    assert made["counts"]["statistical"] > 0
    inputs = command.succeeds(*fuse).json["plan"]["inputs"]
    assert inputs[1]["vocabulary_map_digest"] == made["content_digest"]
    command.succeeds("verify", "--store", store)
    fuse[fuse.index("statistical")] = "nearest"
    refused = command(*fuse)
    assert refused.code == 2
    for choice in ("'mined'", "'exact'", "'prefix'", "'statistical'"):
        assert choice in refused.err
