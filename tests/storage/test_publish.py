"""Locations and publishing, on local disk and on a real S3 server."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from fusestore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    FusestoreError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fusestore.storage import publish as publishing
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.location import Location
from fusestore.storage.publish import (
    MACHINE,
    publish,
    publish_new,
    remove_abandoned,
    retract,
)
from tests.helpers.moto_credentials import set_free_requests


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return Location.parse(tmp_path / "store")
    return Location.parse(request.getfixturevalue("s3_url")) / "store"


def test_published_bytes_are_there(root):
    file = root / "a/b.bin"
    assert not file.exists()
    publish(file, b"one")
    publish(file, b"three")
    assert file.exists()
    assert file.read_bytes() == b"three"
    assert file.size() == 5
    assert [file.read_range(*part) for part in [(1, 3), (3, 99), (5, 9)]] == [b"hr", b"ee", b""]
    file.delete()
    file.delete()
    assert not file.exists()


def test_create_only_never_overwrites(root):
    file = root / "manifest.json"
    publish_new(file, b"first")
    publish_new(file, b"first")
    with pytest.raises(AlreadyExistsError, match="other content"):
        publish_new(file, b"second")
    assert file.read_bytes() == b"first"


def test_of_many_writers_one_wins(root):
    file = root / "manifest.json"
    outcome = []

    def write(number):
        try:
            publish_new(file, b"%d" % number)
        except AlreadyExistsError:
            return
        outcome.append(b"%d" % number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome == [file.read_bytes()]


def test_listing(root):
    assert root.list() == []
    assert root.list_recursive() == []
    assert root.sizes() == {}
    for name in ("b/x/1", "b/2", "a"):
        publish(root / name, name.encode())
    assert root.list() == ["a", "b"]
    assert (root / "b").list() == ["2", "x"]
    assert root.list_recursive() == ["a", "b/2", "b/x/1"]
    assert root.sizes() == {"a": 1, "b/2": 3, "b/x/1": 5}
    assert (root / "a").sizes() == {"": 1}
    (root / "b").delete()
    assert root.list_recursive() == ["a"]


def test_a_folder_that_goes_during_a_listing_is_left_out(tmp_path, monkeypatch):
    """A writer that has finished removes the leases while another lists the artifact."""
    (tmp_path / "leases").mkdir()
    (tmp_path / "manifest.json").write_bytes(b"{}")
    scandir = os.scandir

    def removes_leases(path):
        if str(path).endswith("leases"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removes_leases)
    assert Location.parse(str(tmp_path)).sizes() == {"manifest.json": 2}
    assert not (tmp_path / "leases").exists()


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuses(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(AccessDeniedError):
        Location.parse(str(tmp_path)).sizes()


def test_absent_files_are_named(root):
    file = root / "nothing"
    for read in (file.read_bytes, file.size, lambda: file.read_range(0, 1)):
        with pytest.raises(NotFoundError, match="nothing"):
            read()


def test_locations_can_be_pickled(root):
    publish(root / "x", b"1")
    again = pickle.loads(pickle.dumps(root / "x"))  # noqa: S301 - our own bytes
    assert again.read_bytes() == b"1"


def test_a_missing_bucket_is_named(s3_url):
    file = Location.parse("s3://no-such-bucket-here/x")
    for verb in (
        file.read_bytes,
        lambda: publish(file, b"1"),
        lambda: publish_new(file, b"1"),
        file.sizes,
    ):
        with pytest.raises(NotFoundError, match=r"'no-such-bucket-here'.*does not exist"):
            verb()


def test_wrong_credentials_are_refused_and_say_what_to_set(s3_url, s3_endpoint, monkeypatch):
    publish(Location.parse(s3_url) / "x", b"1")
    wrong = Location.parse(s3_url, {"key": "AKIAWRONG", "secret": "wrong"})
    set_free_requests(s3_endpoint, "0")
    try:
        for verb in (
            (wrong / "x").read_bytes,
            (wrong / "x").exists,
            wrong.sizes,
            lambda: publish(wrong / "y", b"1"),
            lambda: publish_new(wrong / "x", b"1"),
        ):
            with pytest.raises(AccessDeniedError, match="AWS_"):
                verb()
    finally:
        set_free_requests(s3_endpoint, "inf")
    assert Location.parse(s3_url).list() == ["x"]


def test_absent_credentials_say_what_to_set(s3_url, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # An option of its own makes this a client of its own, opened without credentials.
    location = Location.parse(s3_url, {"requester_pays": False})
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        publish(location / "x", b"1")


def test_a_read_only_folder_is_refused_and_unchanged():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        # Root writes everywhere; anyone else will do.
        os.seteuid(65534)
    try:
        for verb in (publish, publish_new):
            for name in ("x", "a/x"):
                with pytest.raises(AccessDeniedError, match="permissions"):
                    verb(Location.parse(folder / name), b"1")
        assert list(folder.iterdir()) == []
    finally:
        os.seteuid(user)
        folder.rmdir()


def test_a_file_where_a_folder_must_be(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    for verb in (publish, publish_new):
        with pytest.raises(StorageError, match="file"):
            verb(Location.parse(tmp_path / "file/x"), b"1")
    with pytest.raises(StorageError):
        publish(Location.parse(tmp_path), b"1")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_abandoned_files_go_and_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "a"
    folder.mkdir()
    names = {
        f".tmp-{MACHINE}-{dead.pid}-01234567": False,
        f".tmp-{MACHINE}-{os.getpid()}-01234567": True,
        f".tmp-0123456789ab-{dead.pid}-01234567": True,
        f".tmp-0123456789ab-{dead.pid}-76543210": False,
        ".tmp-mine": True,
    }
    for name in names:
        (folder / name).write_bytes(b"1")
    os.utime(folder / f".tmp-0123456789ab-{dead.pid}-76543210", (0, 0))
    remove_abandoned(Location.parse(tmp_path))
    assert {path.name for path in folder.iterdir()} == {name for name in names if names[name]}


def test_filesystems_without_hard_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    file = Location.parse(tmp_path / "x")
    publish_new(file, b"1")
    with pytest.raises(AlreadyExistsError):
        publish_new(file, b"2")
    assert file.read_bytes() == b"1"
    assert file.parent.list() == ["x"]


def test_parsing():
    assert Location.parse("file:///a/b").url == "/a/b"
    assert Location.parse("s3://bucket/a/").url == "s3://bucket/a"
    assert (Location.parse("s3://bucket/a") / "b").parent.name == "a"
    with pytest.raises(InvalidInputError, match="empty"):
        Location.parse("")
    with pytest.raises(InvalidInputError, match="nosuch://"):
        Location.parse("nosuch://x").exists()
    with pytest.raises(InvalidInputError, match="not a local path"):
        _ = Location.parse("s3://bucket/a").path


def test_a_folder_is_durable_before_another_thread_writes_to_it(tmp_path, monkeypatch):
    """Otherwise a receipt could be durable without the folder of its files."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder):
        if folder == tmp_path:
            begun.set()
            go_on.wait(60)

    monkeypatch.setattr(publishing, "sync_folder", slow)
    folder = Location.parse(tmp_path / "new")
    writers = [
        threading.Thread(target=publish, args=(folder / name, b"x"), daemon=True)
        for name in ("first", "second")
    ]
    writers[0].start()
    assert begun.wait(60)
    writers[1].start()
    writers[1].join(0.1)
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new" / "second").exists()
    go_on.set()
    for writer in writers:
        writer.join(60)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["first", "second"]


def test_a_retraction_is_durable(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(publishing, "sync_folder", synced.append)
    file = Location.parse(tmp_path / "manifest.json")
    for _ in range(2):
        retract(file)
    assert synced == [tmp_path, tmp_path]
    retract(Location.parse(tmp_path / "gone" / "manifest.json"))


def test_disk_errors_say_what_to_do(tmp_path, monkeypatch):
    for number, advice in (
        (errno.ENOSPC, "Free space there"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "writable"),
        (errno.EIO, "Check the disk"),
        (errno.EACCES, "must be writable"),
    ):

        def fail(_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(FusestoreError, match=advice) as raised:
            publish(Location.parse(tmp_path / "x"), b"1")
        assert str(tmp_path / "x") in str(raised.value)
        assert list(tmp_path.iterdir()) == []


def test_errors_of_libraries_in_rust_are_understood(tmp_path):
    class RustError(Exception):
        pass

    advice = "Free space there, and run the same command again"
    with pytest.raises(StorageError, match=advice), disk_errors(tmp_path, "The model"):
        raise RustError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RustError), disk_errors(tmp_path, "The model"):
        raise RustError("InvalidHeader")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path, only_disk=True):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(OSError, match="elsewhere"), disk_errors(tmp_path, only_disk=True):
        raise OSError(errno.EIO, "elsewhere", "/dev/other")
