"""Folders of believed files belong to their user alone; temporary and lock files follow no link.

Faults 4, 5, 18 and 24 of the trial, and their kind.
"""

import os
import shutil
import time
from pathlib import Path

import pytest

from fusestore.data import StreamingFusedDataset
from fusestore.data.dataset import open_fused
from fusestore.data.shard_cache.cache_folder import ShardFolder
from fusestore.errors import InvalidInputError
from fusestore.storage.file_lock import locked
from fusestore.storage.location import Location
from fusestore.storage.memory import file_digest
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.private_folder import check_private, private_folder
from fusestore.storage.publish import (
    ABANDONED_AFTER_S,
    MACHINE,
    TEMPORARY_PREFIX,
    publish,
    remove_abandoned,
)
from fusestore.storage.replace import created_folder, replaced_file, replaced_folder
from fusestore.store.layout import Store
from fusestore.workflows.managing.garbage import GarbageSettings, collect_garbage
from fusestore.workflows.sharing import copy_artifacts
from tests.helpers.slow_rest import first

if not hasattr(os, "geteuid"):
    pytest.skip("this system has no owners of files", allow_module_level=True)

VICTIM = b"a file of the user's"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim"
    file.write_bytes(VICTIM)
    return file


def opened(store, cache_dir):
    return [
        lambda: StreamingFusedDataset(store / "fused/mixed", cache_dir=cache_dir),
        lambda: open_fused(store, "mixed", cache_dir=cache_dir),
    ]


# Faults 4 and 5: whoever may write to a shared cache_dir planted links and other samples.


@pytest.mark.parametrize("mode", first(2, [0o777, 0o775, 0o722]))
def test_a_folder_that_others_may_write_is_refused(store, tmp_path, mode):
    folder = tmp_path / "shared"
    folder.mkdir()
    # A group of another number than its user is other people.
    if os.geteuid() == 0:
        os.chown(folder, 0, 1)
    folder.chmod(mode)
    if mode == 0o775 and os.geteuid() != 0:
        pytest.skip("the group may be the user's own")
    for call in opened(store, folder):
        with pytest.raises(InvalidInputError, match=r"others may write.*chmod go-w"):
            call()
    assert list(folder.iterdir()) == []


@as_root
def test_a_folder_of_somebody_else_is_refused(store, tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, 1234, 1234)
    for call in opened(store, folder):
        with pytest.raises(InvalidInputError, match="belongs to user 1234"):
            call()
    monkeypatch.setenv("FUSESTORE_HOME", str(folder))
    with pytest.raises(InvalidInputError, match="FUSESTORE_HOME"):
        user_cache_folder()
    # A command that only remembers there goes on, and believes nothing of it.
    (folder / "remembered.json").write_text("{}")
    assert len(file_digest(store / "fused/mixed/manifest.json")) == 64


@as_root
@pytest.mark.parametrize("inner", first(1, ["stream", "fused", "locks"]))
def test_in_a_sticky_folder_the_folders_of_others_are_refused(store, tmp_path, inner):
    """As in /tmp, where anybody may have made cache_dir/stream before."""
    folder = tmp_path / "sticky"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / inner).mkdir()
    os.chown(folder / inner, 1234, 1234)
    call = opened(store, folder)[inner != "stream"]
    with pytest.raises(InvalidInputError, match="belongs to user 1234"):
        call()
    (folder / inner).rmdir()
    (folder / inner).symlink_to(tmp_path / "elsewhere")
    with pytest.raises((InvalidInputError, FileExistsError)):
        call()
    assert not (tmp_path / "elsewhere").exists()


def test_folders_are_made_for_their_user_alone(store, tmp_path, monkeypatch):
    old = os.umask(0o002)
    try:
        monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
        assert user_cache_folder().stat().st_mode & 0o777 == 0o700
        StreamingFusedDataset(store / "fused/mixed", cache_dir=tmp_path / "new")
        open_fused(store, "mixed", cache_dir=tmp_path / "new")
    finally:
        os.umask(old)
    for folder in ("new", "new/stream", "new/fused", "new/locks"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
    for each in (tmp_path / "new/stream").iterdir():
        check_private(each, link=False)
    private_folder(tmp_path / "new")


@pytest.mark.parametrize("hard", [False, True])
def test_a_link_in_the_place_of_a_shard_destroys_nothing(tmp_path, victim, hard):
    folder = ShardFolder(tmp_path / "root", "d", 1_000, None)
    folder.path.mkdir(parents=True)
    temporary = folder.path / f"{TEMPORARY_PREFIX}000000"
    temporary.hardlink_to(victim) if hard else temporary.symlink_to(victim)
    with pytest.raises(InvalidInputError, match="is a link"), folder.create(0):
        pass
    assert victim.read_bytes() == VICTIM
    temporary.unlink()
    with folder.create(0) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
        file.write(b"x")
        folder.publish(0)
    (folder.path / "000000").unlink()
    (folder.path / "000000").symlink_to(victim)
    with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
        folder.open(0)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path, victim):
    (tmp_path / "lock").symlink_to(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="symbolic link"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_links_in_the_places_of_temporary_files_are_replaced(tmp_path, victim):
    """The names of these files can be foretold: a folder of checkpoints may be a shared one."""
    with replaced_file(tmp_path / "file") as temporary:
        place = temporary.parent
        temporary.write_bytes(b"1")
    place.symlink_to(victim)
    with replaced_file(tmp_path / "file") as temporary:
        assert place.is_dir()
        temporary.write_bytes(b"2")
    for replace in (replaced_folder, created_folder):
        outside = tmp_path / f"outside-{replace.__name__}"
        outside.mkdir()
        with replace(tmp_path / replace.__name__) as temporary:
            pass
        shutil.rmtree(tmp_path / replace.__name__)
        temporary.symlink_to(outside)
        with replace(tmp_path / replace.__name__) as temporary:
            (temporary / "x").write_bytes(b"3")
        assert (tmp_path / replace.__name__ / "x").exists()
        assert list(outside.iterdir()) == []
    assert victim.read_bytes() == VICTIM
    assert (tmp_path / "file").read_bytes() == b"2"


def test_published_files_replace_links(tmp_path, victim):
    (tmp_path / "x").symlink_to(victim)
    publish(Location.parse(tmp_path / "x"), b"new")
    assert victim.read_bytes() == VICTIM
    assert not (tmp_path / "x").is_symlink()


# Fault 18: temporary files of a killed unpacking stayed for ever.


def dead_temporary():
    return f"{TEMPORARY_PREFIX}{MACHINE}-{2**22 + 7}-00000000"


def test_what_a_killed_unpacking_left_is_removed(store, tmp_path):
    target = Store.open(tmp_path / "target")
    left = tmp_path / "target/fused/mixed/ids/c/0" / dead_temporary()
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    shutil.copy(store / "fused/mixed/fingerprint.json", tmp_path / "target/fused/mixed")
    copy_artifacts(Store.open(store), target, ["fused/mixed"])
    assert not list((tmp_path / "target").rglob(f"{TEMPORARY_PREFIX}*"))


def test_what_a_killed_stream_left_is_removed(store, tmp_path):
    cache = tmp_path / "cache"
    StreamingFusedDataset(store / "fused/mixed", cache_dir=cache)
    (folder,) = (cache / "stream").iterdir()
    (folder / dead_temporary()).write_bytes(b"half")
    StreamingFusedDataset(store / "fused/mixed", cache_dir=cache)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


# Fault 24: files of another machine were dated by this machine's clock.


def test_another_machines_file_is_dated_by_the_clock_of_its_storage(store, monkeypatch):
    """This machine's clock is two days ahead of the storage's."""
    file = store / "caches/wide" / f"{TEMPORARY_PREFIX}{'0' * 12}-1-00000000"
    file.write_bytes(b"a living writer's")
    ahead = 2 * ABANDONED_AFTER_S
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    remove_abandoned(Location.parse(store))
    collect_garbage(Store.open(store), GarbageSettings(older_than=1e6))
    assert file.exists()
    os.utime(file, (now() - ahead, now() - ahead))
    remove_abandoned(Location.parse(store))
    assert not file.exists()
    assert not list(Path(store).rglob(f"{TEMPORARY_PREFIX}*"))
