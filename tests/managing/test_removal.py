"""Artifacts are removed with what was made from them, or not at all."""

import io
import os
import shutil

import pytest

import fusestore as fs
from fusestore.errors import InvalidInputError, NotFoundError, StorageError
from fusestore.storage.location import Location
from fusestore.storage.publish import MACHINE, publish
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.receipts import Receipt
from fusestore.workflows.verification import verify_store
from tests.helpers.storages import S3_IS_SLOW
from tests.helpers.tiny_job import hashes

USERS = ["model/fused", "fused/mince", "alignment/wide--small", "cache/wide"]


def paths(store):
    return [artifact.path for artifact in list_artifacts(store)]


@S3_IS_SLOW
def test_what_is_used_stays(some):
    before = hashes(some.location)
    store = fs.open_store(some.location)
    with pytest.raises(InvalidInputError, match="alignment/wide--small, fused/mince, model/fused"):
        store.remove("cache/wide")
    assert hashes(some.location) == before


@S3_IS_SLOW
def test_a_cascade_removes_users_first(some):
    store = fs.open_store(some.location)
    before, sizes = paths(some), some.location.sizes()
    planned = store.remove("wide", cascade=True, dry_run=True)
    assert paths(some) == before
    removed = store.remove("wide", cascade=True)
    assert removed.artifacts == planned.artifacts
    assert [each.artifact for each in removed.artifacts] == USERS
    assert removed.artifacts[1].because_of in USERS
    assert removed.artifacts[3].because_of is None
    assert paths(some) == [path for path in before if path not in USERS]
    assert sum(sizes.values()) - removed.num_bytes == sum(some.location.sizes().values())
    assert not any(verify_store(some).values())


@S3_IS_SLOW
def test_users_may_be_named_with_what_they_use(some):
    removed = fs.open_store(some.location).remove("model/fused", "fused/mince")
    assert [each.artifact for each in removed.artifacts] == ["model/fused", "fused/mince"]


def test_another_copy_is_as_good(store):
    """What was made from one of two equal artifacts can be used without it."""
    shutil.copytree(store / "caches/wide", store / "caches/again")
    fs.open_store(store).remove("cache/wide")
    details = fs.open_store(store).describe("alignment/wide--small")
    assert "cache/again" in map(str, details.inputs)


@S3_IS_SLOW
@pytest.mark.parametrize("file", ["leases/writer-0123456789abcdef", None])
def test_what_a_process_writes_is_left_alone(some, file):
    (folder,) = (each.location for each in list_artifacts(some) if each.path == "model/fused")
    written = file or f".tmp-{MACHINE}-{os.getpid()}-01234567"
    publish(folder / written, f"{MACHINE} {os.getpid()} 7\n".encode())
    with pytest.raises(InvalidInputError, match=f"being written by process {os.getpid()}"):
        fs.open_store(some.location).remove("model/fused")
    (folder / written).delete()
    publish(folder / "leases/writer-0123456789abcdef", b"000000000000 1 7\n")
    with pytest.raises(InvalidInputError, match="process 1 of another machine"):
        fs.open_store(some.location).remove("model/fused")
    publish(folder / "leases/writer-0123456789abcdef", f"{MACHINE} 4194399 7\n".encode())
    fs.open_store(some.location).remove("model/fused")
    assert "model/fused" not in paths(some)


def test_an_interrupted_removal_leaves_nothing_that_looks_made(some, monkeypatch):
    """Whenever it stops, no receipt stands for a file that is gone; the same call finishes it."""
    store = fs.open_store(some.location)
    store.remove("model/fused")
    delete, allowed = Location.delete, 0

    def fails(self):
        nonlocal allowed
        if allowed == 0:
            raise StorageError("cut off")
        allowed -= 1
        delete(self)

    for count in (1, 2):
        allowed = count
        with monkeypatch.context() as patch:
            patch.setattr(Location, "delete", fails)
            with pytest.raises(StorageError, match="cut off"):
                store.remove("fused/mince")
        left = find_artifact(some, "fused/mince")
        assert left.state == "unfinished"
        files = left.location.sizes()
        for path in files:
            if path.startswith("receipts/"):
                assert set(Receipt.load(left.location / path).files) <= set(files)
        # The next attempt begins where this one stopped.
    store.remove("fused/mince")
    assert "fused/mince" not in paths(some)


def test_the_command_asks_before_a_cascade(store, command, monkeypatch):
    arguments = ["rm", "cache/wide", "--cascade", "--store", store]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    refused = command(*arguments)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert (store / "caches/wide").exists()
    shown = command.succeeds(*arguments, "--dry-run")
    assert "Would remove 6 artifacts" in shown.out
    assert (store / "caches/wide").exists()
    removed = command.succeeds(*arguments, "--yes", "--json").json
    assert [each["artifact"] for each in removed["artifacts"]][-1] == "cache/wide"
    assert not (store / "caches/wide").exists()
    assert "no cache/wide" in command.fails(*arguments)


def test_nothing_is_removed_if_one_name_is_wrong(store):
    with pytest.raises(NotFoundError, match="model/absent"):
        fs.open_store(store).remove("model/fused", "model/absent")
    assert (store / "models/fused/manifest.json").exists()
