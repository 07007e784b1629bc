"""Ranges of S3 objects by URLs that botocore signs: what arrives, and what S3 answers instead."""

import random
import traceback
import uuid

import pytest

from fusestore.errors import AccessDeniedError, NotFoundError, StorageError
from fusestore.storage import retries as failures
from fusestore.storage import s3
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from tests.helpers.filled import filled

DATA = random.Random(7).randbytes(300_001)  # noqa: S311 - any bytes


@pytest.mark.parametrize("name", ["x", "a b+c", "ü%20#?&=", "deep/er/../x"])
def test_any_range_and_the_whole_by_one_request_each(root, proxy, name):
    file = root / name
    publish(file, DATA)
    for start, size in [(0, 10), (5, 70_000), (len(DATA) - 1, 1), (len(DATA) - 5, 50)]:
        before = proxy.num_requests
        assert filled(file, start, size) == DATA[start : start + size]
        assert filled(file, 0, len(DATA), whole=True) == DATA
        assert proxy.num_requests == before + 2
    assert filled(file, len(DATA), 1) == b""


def test_an_object_that_is_not_as_large_as_it_should_be(root):
    publish(root / "x", DATA)
    assert filled(root / "x", 0, 1_000, whole=True) == DATA[:1_000]
    assert filled(root / "x", 0, len(DATA) + 1_000, whole=True) == DATA


def test_connections_are_used_again(root, proxy):
    publish(root / "x", DATA)
    filled(root / "x", 0, 10)
    handler, opened = proxy._server.RequestHandlerClass, []
    handler.setup = lambda self: (opened.append(1), super(handler, self).setup())
    for number in range(10):
        assert filled(root / "x", 0, len(DATA), whole=bool(number % 2)) == DATA
    assert opened == []


@pytest.mark.parametrize("status", ["301", "307", "400"])
def test_a_bucket_in_another_region_is_botocores_to_find(root, proxy, monkeypatch, status):
    publish(root / "x", DATA)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setattr(s3, "_CLIENTS", {})
    proxy.plan(status)
    assert filled(root / "x", 3, 1_000) == DATA[3:1_003]
    assert not proxy.planned
    proxy.plan(status)
    assert filled(root / "x", 0, len(DATA), whole=True) == DATA


def test_what_was_signed_is_not_told(root, proxy, monkeypatch):
    publish(root / "x", DATA)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret-of-a-session")
    monkeypatch.setitem(s3.REQUEST_SETTINGS, "read_timeout", 0.2)
    monkeypatch.setattr(s3, "_CLIENTS", {})
    expected = f"{root}/x could not be reached: .*{proxy.url}/"
    for fault in ("reset", "hang"):
        proxy.plan(*[fault] * failures.ATTEMPTS)
        with pytest.raises(StorageError, match=expected) as raised:
            filled(root / "x", 0, 1)
        told = "".join(traceback.format_exception(raised.value))
        assert "secret-of-a-session" not in told
        assert "X-Amz-Signature" not in told


def test_refusals_say_what_was_refused(root, proxy, monkeypatch):
    with pytest.raises(NotFoundError, match=f"{root}/x does not exist"):
        filled(root / "x", 0, 1)
    nowhere = Location(f"s3://bucket-{uuid.uuid4().hex}", root.storage_options)
    with pytest.raises(NotFoundError, match=r"Bucket 'bucket-.*does not exist"):
        filled(nowhere / "x", 0, 1)
    proxy.plan("403")
    with pytest.raises(AccessDeniedError, match="on purpose"):
        filled(root / "x", 0, 1)
    proxy.plan(*["503"] * failures.ATTEMPTS)
    with pytest.raises(StorageError, match=f"{root}/x"):
        filled(root / "x", 0, 1)
    assert not proxy.planned
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr(s3, "_CLIENTS", {})
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        filled(root / "x", 0, 1)
