"""What nothing can use is cleared up, and nothing else."""

import os
import shutil
import time
from types import SimpleNamespace

import pytest

import fusestore as fs
from fusestore.storage.file_lock import locked
from fusestore.storage.publish import MACHINE, publish
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.workflows.managing import garbage
from fusestore.workflows.managing.garbage import collect_garbage
from fusestore.workflows.verification import verify_store
from tests.helpers.storages import S3_IS_SLOW
from tests.helpers.tiny_job import hashes

NOW = fs.GarbageSettings(older_than=0)
DEAD = f".tmp-{MACHINE}-4194399-01234567"


def found(store, settings=NOW):
    return {item.path: item.reason for item in collect_garbage(store, settings).items}


def age(folder, days):
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * 86400,) * 2)


@S3_IS_SLOW
def test_leftovers_go_and_artifacts_stay(some):
    sound = hashes(some.location)
    assert found(some) == {}
    publish(some.location / "corpora" / DEAD, b"123")
    publish(some.cache("wide") / "logprobs" / DEAD, b"1234")
    publish(some.cache("wide") / "leases/000000-0", b"0123456789abcdef")
    living = f".tmp-{MACHINE}-{os.getpid()}-01234567"
    publish(some.cache("small") / living, b"now")
    # What a person keeps there is no artifact of ours.
    publish(some.location / "caches/mine/notes.txt", b"{}")
    planned = collect_garbage(some, NOW, dry_run=True)
    assert {item.path for item in planned.items} == {
        f"corpora/{DEAD}",
        f"caches/wide/logprobs/{DEAD}",
        "caches/wide/leases/000000-0",
    }
    assert planned.num_bytes == 3 + 4 + 16
    done = collect_garbage(some, NOW)
    assert done.items == planned.items
    (some.cache("small") / living).delete()
    (some.location / "caches/mine").delete()
    assert hashes(some.location) == sound


def test_locks_that_nobody_holds_go(store):
    """Of an unfinished dataset: a killed process left one, another one makes a shard now."""
    folder = store / "fused/mixed"
    (folder / "manifest.json").unlink()
    (folder / "receipts/000000.json").unlink()
    locks = folder / ".tmp-locks"
    locks.mkdir()
    (locks / "000000").touch()
    with locked(locks / "000001"):
        planned = collect_garbage(Store.open(store), NOW, dry_run=True)
        assert [item.path for item in planned.items] == ["fused/mixed/.tmp-locks/000000"]
        assert collect_garbage(Store.open(store), NOW).items == planned.items
        assert [path.name for path in locks.iterdir()] == ["000001"]
    assert found(Store.open(store)) == {
        "fused/mixed/.tmp-locks/000001": "lock of a shard that no process holds"
    }
    assert not locks.exists()


@S3_IS_SLOW
def test_what_is_made_on_demand_goes_when_nothing_uses_it(some):
    store = fs.open_store(some.location)
    before = {artifact.path for artifact in list_artifacts(some)}
    store.remove("alignment/wide--small", cascade=True)
    (removed,) = (path for path in found(some) if path.startswith("vocabulary_maps/"))
    assert removed
    left = {artifact.path for artifact in list_artifacts(some)}
    assert {path for path in before - left if path.startswith("map/")}
    # Both caches are still there, and so are their vocabularies.
    assert len([path for path in left if path.startswith("vocabulary/")]) == 2
    assert not any(verify_store(some).values())
    store.remove("cache/wide", "cache/small")
    assert [path for path in found(some) if path.startswith("vocabularies/")]
    assert {artifact.path for artifact in list_artifacts(some)} == {
        "corpus/addresses",
        "cache/nucleus",
        "vocabulary/" + fs.open_cache(some, "nucleus").fingerprint.tokenizer_digest[:16],
    }


@pytest.mark.parametrize("state", ["complete", "unfinished", "damaged"])
def test_a_map_stays_while_fusing_needs_it(some, state):
    """The alignment was made without it, but a recipe reads both."""
    store = fs.open_store(some.location)
    recipe = fs.Recipe(sources=["wide", "small"], target="small", window_length=64)
    users = [artifact.path for artifact in list_artifacts(some)]
    store.remove(*(path for path in users if path.startswith(("fused/", "model/"))))
    manifest = some.location / "alignments/wide--small/manifest.json"
    if state != "complete":
        manifest.delete()
    if state == "damaged":
        publish(manifest, b"{}")
    assert not [path for path in found(some) if path.startswith("vocabulary_maps/")]
    store.repair()
    store.fuse("new", recipe, materialize=False)


def test_an_interrupted_removal_is_finished(store):
    path = "vocabulary_maps/2fc7ebcd56fd74cb-deba6c3979ce4230-prefix"
    (store / path / "manifest.json").unlink()
    # The alignment that was made with it needs it.
    assert found(Store.open(store)) == {}
    for name in ("alignments/wide--small", "fused/mince", "fused/learned", "models/fused"):
        shutil.rmtree(store / name)
    shutil.rmtree(store / "models/merged")
    assert path in found(Store.open(store))
    assert not (store / path).exists()


def test_unfinished_artifacts_go_on_request_alone(store):
    opened = fs.open_store(store)
    for path in ("caches/exact", "fused/mince", "models/merged"):
        (store / path / "manifest.json").unlink()
    age(store / "caches/exact", 10)
    age(store / "fused/mince", 10)
    assert found(opened) == {}
    week = fs.GarbageSettings(older_than=0, unfinished_older_than=7)
    publish(opened.cache("exact") / "leases/writer-0123456789abcdef", b"000000000000 1 7\n")
    assert found(opened, week) == {}
    shutil.rmtree(store / "caches/exact/leases")
    # A dataset whose shards are made when they are read is no rest; the model is too young.
    assert list(found(opened, week)) == ["caches/exact"]
    assert (store / "fused/mince/fingerprint.json").exists()
    assert (store / "models/merged/fingerprint.json").exists()


def test_what_was_written_today_is_left_alone(store):
    opened = fs.open_store(store)
    opened.remove("alignment/wide--small", "alignment/drawn--small", cascade=True)
    assert found(opened, fs.GarbageSettings()) == {}
    age(store / "vocabulary_maps", 2)
    removed = found(opened, fs.GarbageSettings())
    assert removed
    assert all(path.startswith("vocabulary_maps/") for path in removed)


def test_ages_are_told_by_the_clock_of_the_storage(store, monkeypatch):
    for name in ("alignments/drawn--small", "alignments/wide--small", "fused/mixed"):
        shutil.rmtree(store / name)
    in_a_week = SimpleNamespace(time=lambda: time.time() + 7 * 86400)
    monkeypatch.setattr(garbage, "time", in_a_week)
    assert found(Store.open(store), fs.GarbageSettings()) == {}
    monkeypatch.undo()
    age(store / "vocabulary_maps", 2)
    assert len(found(Store.open(store), fs.GarbageSettings())) == 1


def test_tokens_of_an_earlier_corpus_go(store):
    """Their manifest names the corpus they belong to."""
    opened = fs.open_store(store)
    (folder,) = list((store / "corpora/chats/tokens").iterdir())[:1]
    shutil.copytree(folder, store / "corpora/addresses/tokens" / folder.name)
    shutil.copytree(folder, store / "corpora/addresses/tokens/unfinished")
    (store / "corpora/addresses/tokens/unfinished/manifest.json").unlink()
    items = found(opened)
    assert items
    root = f"corpora/addresses/tokens/{folder.name}/"
    assert all(path.startswith(root) for path in items)
    assert set(items.values()) == {"left by an earlier corpus of this name"}
    assert (store / "corpora/addresses/tokens/unfinished").exists()


def test_the_command_says_what_is_freed(store, command):
    assert "Nothing to clear up" in command.succeeds("gc", "--store", store).out
    (store / DEAD).write_bytes(b"12345")
    assert "Would free 5 bytes" in command.succeeds("gc", "--dry-run", "-s", store).out
    assert (store / DEAD).exists()
    assert command.succeeds("gc", "-s", store, "--json").json["num_bytes"] == 5
    assert not (store / DEAD).exists()
    assert command("gc", "-s", store, "--older-than", "-1").code == 2


@pytest.mark.parametrize("verb", [["gc"], ["ls"], ["tree"], ["du"], ["rm", "x"], ["mv", "x", "y"]])
def test_no_store(command, tmp_path, verb):
    message = command.fails(*verb, "--store", tmp_path / "nothing")
    assert "no store" in message
    assert not (tmp_path / "nothing").exists()
