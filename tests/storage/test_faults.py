"""Every verb on S3 behind a proxy that fails: right, or an error, and never something else."""

import random
import uuid

import pytest

from fusestore.errors import AccessDeniedError, AlreadyExistsError, NotFoundError, StorageError
from fusestore.storage import object_client, objects
from fusestore.storage import retries as failures
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_new
from tests.helpers.fault_proxy import FAULTS
from tests.helpers.filled import filled


@pytest.fixture
def _once(monkeypatch):
    """The client sends each request once: its own repetitions hide faults. Ours wait little."""
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(object_client, "RETRIES", 0)
    monkeypatch.setattr(object_client, "_CLIENTS", {})


pytestmark = pytest.mark.usefixtures("_once")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_verb_survives_each_fault(root, proxy, fault):
    file = root / "a/x"
    data = bytes(range(256)) * 40

    def with_fault(verb):
        proxy.plan(fault)
        result = verb()
        assert not proxy.planned
        return result

    with_fault(lambda: publish(file, data))
    with_fault(lambda: publish_new(root / "a/new", data))
    with_fault(lambda: publish_new(root / "a/new", data))
    with pytest.raises(AlreadyExistsError):
        with_fault(lambda: publish_new(root / "a/new", b"other"))
    assert with_fault((root / "a/new").read_bytes) == data
    assert with_fault(file.read_bytes) == data
    assert with_fault(lambda: file.read_range(100, 300)) == data[100:300]
    assert with_fault(lambda: file.read_range(10_000, 99_999)) == data[10_000:]
    assert with_fault(lambda: file.read_range(99_999, 100_000)) == b""
    assert with_fault(lambda: filled(file, 100, 200)) == data[100:300]
    assert with_fault(lambda: filled(file, 10_000, 89_999)) == data[10_000:]
    assert with_fault(lambda: filled(file, 99_999, 1)) == b""
    assert with_fault(lambda: file.read_prefix(10**6)) == data
    assert with_fault(file.exists)
    assert not with_fault((root / "a/y").exists)
    assert with_fault(file.size) == len(data)
    assert with_fault(root.sizes) == {"a/x": len(data), "a/new": len(data)}
    assert with_fault((root / "a").list) == ["new", "x"]
    assert with_fault((root / "b").list) == []
    with pytest.raises(NotFoundError):
        with_fault((root / "b").read_bytes)
    with pytest.raises(NotFoundError):
        with_fault(lambda: filled(root / "b", 0, 10))
    with_fault((root / "a").delete)
    assert root.sizes() == {}
    assert proxy.happened[fault] == 22


@pytest.mark.parametrize("verb", ["read_bytes", "read_range", "read_into"])
def test_reads_that_come_back_short_are_repeated(root, proxy, verb):
    file = root / "x"
    data = bytes(range(256)) * 40
    publish(file, data)

    def read():
        if verb == "read_into":
            return filled(file, 0, len(data))
        return file.read_bytes() if verb == "read_bytes" else file.read_range(0, len(data))

    proxy.plan("short", "short", "short", "short")
    assert read() == data
    proxy.rate, proxy.kinds = 1.0, ("short",)
    with pytest.raises(StorageError, match=r"came back as|checksum"):
        read()


def test_large_objects_are_read_in_pieces(root, proxy, monkeypatch):
    monkeypatch.setattr(objects, "BYTES_PER_REQUEST", 1000)
    data = random.Random(3).randbytes(20_500)  # noqa: S311 - any bytes
    publish(root / "x", data)
    proxy.plan(None, None, "cut answer", None, "short")
    assert (root / "x").read_bytes() == data
    publish(root / "empty", b"")
    assert (root / "empty").read_bytes() == b""


def test_a_refusal_is_not_repeated(root, proxy):
    publish(root / "x", b"1")
    proxy.plan("403")
    with pytest.raises(AccessDeniedError, match=str(root / "x")):
        filled(root / "x", 0, 1)
    assert proxy.happened["403"] == 1


def test_a_storage_that_never_recovers_is_an_error_and_no_answer(root, proxy):
    publish(root / "x", b"1")
    for kind in ("503", "reset"):
        proxy.rate, proxy.kinds = 1.0, (kind,)
        for verb in (
            (root / "x").read_bytes,
            (root / "x").exists,
            (root / "x").size,
            root.sizes,
            root.list,
            (root / "x").delete,
            lambda: (root / "x").read_range(0, 1),
            lambda: filled(root / "x", 0, 1),
            lambda: publish(root / "x", b"2"),
            lambda: publish_new(root / "y", b"2"),
        ):
            before = proxy.num_requests
            with pytest.raises(StorageError, match=str(root)):
                verb()
            # One verb is up to four requests (a look at the object, at the folder, …).
            assert proxy.num_requests - before <= 4 * failures.ATTEMPTS
    proxy.rate = 0.0
    assert (root / "x").read_bytes() == b"1"
    assert root.list() == ["x"]


def test_a_lost_answer_to_the_last_attempt_is_a_success(root, proxy):
    proxy.plan(*["lost answer"] * failures.ATTEMPTS)
    publish_new(root / "x", b"mine")
    assert (root / "x").read_bytes() == b"mine"
    proxy.plan(*["lost answer"] * failures.ATTEMPTS)
    with pytest.raises(AlreadyExistsError):
        publish_new(root / "x", b"other")
    assert (root / "x").read_bytes() == b"mine"


def test_a_server_that_hangs_is_asked_again(root, proxy, monkeypatch):
    monkeypatch.setattr(object_client, "READ_TIMEOUT_S", 0.5)
    publish(root / "x", b"1")
    proxy.plan("hang")
    assert (root / "x").read_bytes() == b"1"
    proxy.plan("hang")
    assert filled(root / "x", 0, 1) == b"1"
    assert proxy.happened["hang"] == 2


def test_a_stall_of_half_a_minute_is_given_up_by_default():
    assert object_client.READ_TIMEOUT_S < 30


def test_a_body_on_a_slow_line_gets_the_time_that_it_needs(root, proxy, monkeypatch):
    monkeypatch.setattr(object_client, "READ_TIMEOUT_S", 0.4)
    monkeypatch.setattr(object_client, "UPLOAD_BYTES_PER_TIMEOUT", 250_000)
    monkeypatch.setattr(failures, "ATTEMPTS", 2)
    proxy.seconds_per_body = 1.0
    with pytest.raises(StorageError):
        publish(root / "x", bytes(200_000))
    publish(root / "x", bytes(1_000_000))
    assert (root / "x").size() == 1_000_000


def test_a_server_that_is_gone_is_told_with_limits(s3_url, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    gone = Location.parse(s3_url, {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StorageError, match="could not be reached"):
        (gone / "x").read_bytes()


def test_many_faults_never_a_wrong_answer(root, proxy):
    """Model: a dictionary. Whatever fails in between, reads tell what was last written."""
    choice = random.Random(11)  # noqa: S311 - repeatable
    proxy.rate = 0.2
    known = {}
    for _ in range(60):
        name = choice.choice("abc")
        data = choice.randbytes(choice.randrange(3000))
        if choice.random() < 0.5:
            publish(root / name, data)
            known[name] = data
        elif name in known:
            start = choice.randrange(3000)
            assert (root / name).read_bytes() == known[name]
            some = known[name][start : start + 500]
            assert (root / name).read_range(start, start + 500) == some
            assert filled(root / name, start, 500) == some
        else:
            unique = root / uuid.UUID(int=choice.getrandbits(128)).hex
            publish_new(unique, data)
            assert unique.read_bytes() == data
            unique.delete()
        assert root.sizes() == {name: len(data) for name, data in known.items()}
    assert sum(proxy.happened.values()) > 20
