"""Publishing to a folder and to S3: a store with a card beside its artifacts."""

import json

import pytest

import fusestore as fs
from fusestore.errors import InvalidInputError
from fusestore.storage.location import Location
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from tests.helpers.output_schemas import check
from tests.helpers.renamed import check_sound, rename_all, renamed_path
from tests.helpers.tiny_job import hashes


def test_a_folder_is_published_once(store, tmp_path, command):
    target = tmp_path / "out"
    arguments = ["publish", "cache/wide", target, "-s", store]
    printed = command.succeeds(*arguments).out
    assert "Published cache/wide" in printed
    card = (target / "README.md").read_text()
    assert "| teacher | wide |" in card
    again = command.succeeds(*arguments, "--json").json
    check(again, "output-publish")
    assert (again["num_files"], again["card_changed"]) == (0, False)
    assert "the card is as it was" in command.succeeds(*arguments).out
    # A card is no artifact: nothing trips over it, and garbage collection leaves it.
    assert "wide" in command.succeeds("ls", "-s", target).out
    fs.open_store(target).collect_garbage(fs.GarbageSettings(older_than=0))
    assert not any(fs.open_store(target).verify().values())
    assert (target / "README.md").read_text() == card


def test_what_is_refused_before_anything_is_read(store, command, tmp_path):
    for arguments, problem in (
        (["cache/wide"], "name the artifacts to publish"),
        (["cache/wide", "out", "--all"], "or give --all and the target alone"),
        (["cache/wide", "fused/mince"], "is the form of an artifact"),
        (["cache/wide", "./x", "--license", "map/x=mit"], "has no license of its own"),
        (["cache/wide", "./x", "--language", "x y"], "no code of a language"),
    ):
        outcome = command("publish", *arguments, "-s", store)
        assert outcome.code == 2
        assert problem in " ".join(outcome.err.replace("│", " ").split())
    settings = fs.PublishSettings(license={"cache/none": "mit"})
    with pytest.raises(InvalidInputError, match="made from no such artifact"):
        fs.open_store(store).publish(tmp_path / "x", ["cache/wide"], settings)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_prints_the_card(store, command, tmp_path):
    printed = command.succeeds("publish", "wide", tmp_path / "out", "-s", store, "--dry-run").out
    assert "Would publish cache/wide" in printed
    assert "license: apache-2.0" in printed
    assert not (tmp_path / "out").exists()


def test_what_is_published_can_be_held_to_a_digest(store, command, tmp_path):
    target = tmp_path / "out"
    publish = ["publish", "cache/wide", target, "-s", store]
    planned = command.succeeds(*publish, "--dry-run", "--json").json["content"]["artifacts"]
    digests = {each["artifact"]: each["manifest_digest"] for each in planned}
    held = [f"--expect={path}={digest}" for path, digest in digests.items()]
    wrong = [f"--expect={path}={'0' * 64}" for path in digests]
    assert "is not what was expected" in command.fails(*publish, *wrong)
    assert "No digest is expected of" in command.fails(*publish, held[0])
    assert not target.exists()
    command.succeeds(*publish, *held)
    card = (target / "README.md").read_text()
    # What the card says is what a pull can be held to.
    assert all(digest in card for digest in digests.values())
    manifest = target / "caches/wide/manifest.json"
    assert json.loads(manifest.read_bytes())["checksum"] == digests["cache/wide"]
    assert "checksum of the manifest" in card
    assert "SHA-256 of the manifest" not in card
    command.succeeds("pull", "cache/wide", "--from", target, "--to", tmp_path / "theirs", *held)


@pytest.mark.slow
def test_a_store_of_ten_artifacts_loses_nothing(lineage, s3_url, tmp_path):
    """Through rename, garbage collection, publish and pull, all of it on S3."""
    before = hashes(lineage.location)
    some = Store.open(f"{s3_url}/some")
    copy_artifacts(lineage, some, None)
    rename_all(some)
    garbage = fs.open_store(some.location).collect_garbage(fs.GarbageSettings(older_than=0))
    assert garbage.items == ()
    public = f"{s3_url}/public/store"
    settings = fs.PublishSettings(inputs=True, forecast=True)
    published = fs.open_store(some.location).publish(public, ["model/third", "nucleus"], settings)
    assert len(published.artifacts) == 10
    assert [each.fused for each in published.content.forecasts] == ["second"]
    target = Store.open(public)
    card = Location.parse(f"{public}/README.md").read_bytes().decode()
    assert card == published.card
    for name in ("breit", "places", "second", "third", "Forecast of second", "nucleus"):
        assert name in card
    # Nothing of the store was touched by it, and nothing of it is missing there.
    expected = {renamed_path(path): each for path, each in before.items()}
    assert hashes(some.location) == expected
    there = hashes(target.location)
    del there["README.md"]
    assert there == expected
    garbage = fs.open_store(public).collect_garbage(fs.GarbageSettings(older_than=0))
    assert garbage.items == ()
    back = Store.open(tmp_path / "back")
    copy_artifacts(target, back, ["model/third", "nucleus"], CopySettings(inputs=True))
    assert hashes(back.location) == expected
    assert len(list_artifacts(back)) == 10
    check_sound(back)
