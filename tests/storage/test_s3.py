"""Objects of S3: what arrives, what S3 answers instead, and with whose credentials it is asked."""

import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
import uuid

import boto3
import pytest

from fusestore.errors import AccessDeniedError, InvalidInputError, NotFoundError, StorageError
from fusestore.storage import object_client
from fusestore.storage import retries as failures
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from tests.helpers.filled import filled

DATA = random.Random(7).randbytes(300_001)  # noqa: S311 - any bytes


@pytest.mark.parametrize("name", ["x", "a b+c", "ü%20#?&=", "deep/er/x"])
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
    # A connection returns to the pool a moment after its answer, in a thread of the client.
    assert len(opened) < 5


@pytest.mark.parametrize("status", ["301", "307", "400"])
def test_a_bucket_in_another_region_is_found(root, proxy, monkeypatch, status):
    publish(root / "x", DATA)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setattr(object_client, "_CLIENTS", {})
    proxy.plan(status)
    assert filled(root / "x", 3, 1_000) == DATA[3:1_003]
    assert not proxy.planned
    proxy.plan(status)
    assert filled(root / "x", 0, len(DATA), whole=True) == DATA


def test_credentials_are_not_told(root, proxy, monkeypatch):
    publish(root / "x", DATA)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret-of-a-session")
    monkeypatch.setattr(object_client, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(object_client, "RETRIES", 0)
    monkeypatch.setattr(object_client, "_CLIENTS", {})
    expected = f"{root}/x could not be reached: .*{proxy.url}/"
    for fault in ("reset", "hang"):
        proxy.plan(*[fault] * failures.ATTEMPTS)
        with pytest.raises(StorageError, match=expected) as raised:
            filled(root / "x", 0, 1)
        told = "".join(traceback.format_exception(raised.value))
        assert "secret-of-a-session" not in told
        assert "Signature" not in told


def test_refusals_say_what_was_refused(root, proxy, monkeypatch):
    monkeypatch.setattr(object_client, "RETRIES", 0)
    monkeypatch.setattr(object_client, "_CLIENTS", {})
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
    monkeypatch.setattr(object_client, "_CLIENTS", {})
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        filled(root / "x", 0, 1)


def test_where_credentials_come_from(root, proxy, monkeypatch, tmp_path):
    publish(root / "x", DATA)
    bucket, _, below = root.url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object_acl(Bucket=bucket, Key=f"{below}/x", ACL="public-read")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(
        "[work]\naws_access_key_id = OF-A-PROFILE\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    asked = []
    handler = proxy._server.RequestHandlerClass
    serve = handler._serve
    monkeypatch.setattr(handler, "do_GET", lambda self: (asked.append(self.headers), serve(self)))
    for options, key, token in (
        ({}, "test", "of-the-environment"),
        ({"key": "OF-AN-OPTION", "secret": "x"}, "OF-AN-OPTION", None),
        ({"profile": "work"}, "OF-A-PROFILE", None),
        ({"anon": "true"}, None, None),
        ({"anon": True}, None, None),
        ({"anon": "false"}, "test", "of-the-environment"),
    ):
        monkeypatch.setattr(object_client, "_CLIENTS", {})
        file = Location.parse(root.url, {**dict(root.storage_options), **options}) / "x"
        assert filled(file, 3, 10) == DATA[3:13]
        authorization = asked[-1].get("Authorization", "")
        assert (f"Credential={key}/" in authorization) == (key is not None)
        assert asked[-1].get("X-Amz-Security-Token") == token
    with pytest.raises(InvalidInputError, match="nobody"):
        filled(Location.parse(root.url, {"profile": "nobody"}) / "x", 0, 1)


def test_a_listing_with_a_name_that_is_no_path(root, s3_endpoint):
    bucket, _, below = root.url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.put_object(Bucket=bucket, Key=f"{below}/../evil", Body=b"")
    with pytest.raises(InvalidInputError, match="Do not trust this store"):
        root.sizes()
    with pytest.raises(InvalidInputError, match="is no path inside"):
        (root / "../evil").read_bytes()


def test_ctrl_c_ends_a_request_that_hangs(root, proxy):
    publish(root / "x", DATA)
    proxy.hang_s = 30
    proxy.plan("hang")
    began = time.monotonic()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    # A shell's background process ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            (root / "x").read_bytes()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10


def test_a_process_forked_after_a_request_is_refused(root):
    publish(root / "x", DATA)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def read():
        try:
            sender.send((root / "x").read_bytes())
        except InvalidInputError as error:
            sender.send(str(error))

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    assert receiver.poll(60)
    assert "forkserver" in receiver.recv()
    child.join()
