"""What a store holds, what it was made from, and what it takes."""

import os
import shutil
from datetime import UTC, datetime

import pytest

import fusestore as fs
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.listing import store_listing


def test_sizes_add_up_on_any_storage(some):
    usage = fs.open_store(some.location).usage()
    sizes = some.location.sizes()
    assert usage.num_bytes == sum(sizes.values())
    assert usage.num_files == len(sizes)
    assert usage.other_bytes == 0
    assert sum(entry.num_bytes for entry in usage.entries) == usage.num_bytes
    assert sum(kind.num_bytes for kind in usage.kinds) == usage.num_bytes
    assert sum(kind.num_artifacts for kind in usage.kinds) == len(usage.entries) == 10
    age = datetime.now(UTC) - datetime.fromisoformat(usage.entries[0].modified)
    assert abs(age.total_seconds()) < 3600
    parts = fs.open_store(some.location).usage("wide")
    assert parts.artifact == "cache/wide"
    (whole,) = (entry for entry in usage.entries if entry.name == "cache/wide")
    assert (parts.num_bytes, parts.num_files) == (whole.num_bytes, whole.num_files)
    assert {"ids", "logprobs", "tail", "manifest.json"} < {entry.name for entry in parts.entries}
    assert whole.bytes_per_token == whole.num_bytes / len(fs.open_cache(some, "wide"))


def test_files_of_no_artifact_are_counted(store):
    (store / "notes.txt").write_text("mine")
    (store / "caches" / "stray").write_bytes(b"123")
    usage = fs.open_store(store).usage()
    assert usage.other_bytes >= 4
    assert usage.num_bytes == sum(Store.open(store).location.sizes().values())


def test_details_say_what_the_manifest_does_not(store):
    old = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()
    os.utime(store / "caches/wide/zarr.json", (old, old))
    details = fs.open_store(store).describe("wide")
    assert details.artifact == "cache/wide"
    assert details.state == "complete"
    assert details.first_modified == "2024-02-03T04:05:06+00:00"
    assert details.last_modified > details.first_modified
    assert details.settings["top_k"] == 8
    assert details.settings["model.architecture"] == "LlamaForCausalLM"
    assert "digest" not in " ".join(details.settings)
    assert details.model.startswith("a folder: LlamaForCausalLM")
    assert "corpus/addresses" in map(str, details.inputs)
    assert set(details.used_by) >= {"alignment/wide--small", "fused/mince"}
    assert details.manifest["content_digest"] == details.digest


def test_a_missing_input_is_named_everywhere(store, command):
    opened = fs.open_store(store)
    shutil.rmtree(store / "caches/small")
    details = opened.describe("fused/mince")
    (missing,) = (each for each in details.inputs if not each.present)
    assert str(missing) == "cache/small (missing)"
    assert "missing: cache/small" in command.succeeds("tree", "-s", store).out
    assert "cache/small (missing)" in command.succeeds("show", "fused/mince", "-s", store).out
    verified = command.succeeds("verify", "fused/mince", "-s", store, "--quick").out
    assert "input cache/small is not in the store any more, without which" in verified


def test_what_cannot_be_used_without_its_input_is_not_sound(store, command):
    vocabulary = fs.open_store(store).describe("cache/wide").inputs[1]
    (store / f"vocabularies/{vocabulary.name}/manifest.json").unlink()
    outcome = command("verify", "cache/wide", "-s", store, "--quick")
    assert outcome.code == 1
    assert "cannot be used" in outcome.out
    assert "which it needs" in outcome.out
    # A dataset whose shards are made when they are read needs all of its inputs.
    (store / "fused/mince/manifest.json").unlink()
    (store / "caches/small/manifest.json").unlink()
    found = command("verify", "fused/mince", "-s", store, "--quick", "--json")
    assert found.code == 1
    (artifact,) = found.json["artifacts"]
    assert [each["name"] for each in artifact["missing_inputs"]] == ["small"]


def test_a_tree_has_each_artifact_below_an_input(store):
    tree = fs.open_store(store).tree()
    entries = {entry.artifact: entry for entry in tree.artifacts}
    assert len(entries) == len(tree.artifacts) == len(list_artifacts(Store.open(store)))
    assert entries["alignment/wide--small"].below == "cache/wide"
    assert entries["fused/mince"].below == "alignment/wide--small"
    assert entries["model/fused"].below == "fused/mince"
    for entry in tree.artifacts:
        inputs = {str(each) for each in entry.inputs}
        assert entry.below is None or entry.below in inputs
        assert entry.depth == (0 if entry.below is None else entries[entry.below].depth + 1)
        for user in entry.used_by:
            assert entry.artifact in {str(each) for each in entries[user].inputs}
    part = {entry.artifact for entry in fs.open_store(store).tree("wide--small").artifacts}
    assert {"corpus/addresses", "cache/wide", "fused/mince", "model/fused"} < part
    assert "cache/exact" not in part


def test_an_unfinished_artifact_has_inputs(store):
    (store / "fused/mince/manifest.json").unlink()
    lineage = Lineage.of(Store.open(store))
    (mince,) = (each for each in lineage.artifacts if each.path == "fused/mince")
    assert mince.state == "unfinished"
    assert {found.artifact.path for found in lineage.inputs(mince)} > {"cache/small", "cache/wide"}


def test_a_name_alone_is_enough_unless_two_artifacts_have_it(store):
    opened = Store.open(store)
    assert find_artifact(opened, "wide").path == "cache/wide"
    (store / "fused/mince").rename(store / "fused/fused")
    with pytest.raises(InvalidInputError, match="has fused/fused and model/fused"):
        find_artifact(opened, "fused")
    with pytest.raises(NotFoundError, match=r"no artifact wide--smal .*'alignment/wide--small'"):
        find_artifact(opened, "wide--smal")
    with pytest.raises(NotFoundError, match=r"no cache/wied .*mean 'cache/wide'"):
        find_artifact(opened, "cache/wied")
    with pytest.raises(InvalidInputError, match=r"'chace' is no kind of artifact.*'cache'"):
        find_artifact(opened, "chace/wide")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "cache/wied"],
        ["tree", "cache/wied"],
        ["du", "cache/wied"],
        ["rm", "cache/wied"],
        ["mv", "cache/wied", "x"],
        ["verify", "cache/wied"],
        ["push", "cache/wied", "--to", "elsewhere"],
        ["forecast", "--source", "wied", "--target", "small"],
        ["fuse", "--source", "wied", "--target", "small"],
        ["align", "wied", "--target", "small"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_names_the_nearest_artifact(store, command, arguments):
    message = command.fails(*arguments, "--store", store)
    assert "Did you mean 'cache/wide'" in message or "Did you mean 'wide'" in message


def test_a_damaged_manifest_stops_no_list(store):
    (store / "caches/wide/manifest.json").write_bytes(b"{}")
    opened = fs.open_store(store)
    states = {entry.artifact: entry.state for entry in store_listing(opened).artifacts}
    assert states["cache/wide"] == "damaged"
    assert opened.usage("cache/wide").entries
    assert {entry.artifact for entry in opened.tree().artifacts} == set(states)
    with pytest.raises(CorruptionError, match="fusestore verify cache/wide"):
        opened.describe("cache/wide")
