"""How S3 is talked to, and ranges of its objects read straight into memory.

s3fs hands every byte of every connection through the event loop of one thread. botocore, which it
stands on, reads in the thread that asks, for a fifth to a third less of the processor's time.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Any

from fusestore.errors import StorageError

SCHEMES = ("s3://", "s3a://")

REQUEST_SETTINGS = {
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "connect_timeout": 10,
    "read_timeout": 60,
}
"""For each request, in seconds; every verb is tried again besides (`storage.failures`)."""

_KNOWN_OPTIONS = {"key", "secret", "token", "endpoint_url", "profile"}
"""s3fs's options that are a client's, too."""

_CONNECTIONS = 16
_READ_BYTES = 2**18
"""Read at a time: what urllib3 makes of it stays in the processor's caches."""

_Options = tuple[tuple[str, str], ...]
_CLIENTS: dict[tuple[int, _Options], Any] = {}
"""By process id and options: never shared across a fork."""

_MAKING = threading.Lock()
"""botocore's clients may be used by several threads, but not made."""


def endpoint_of_environment() -> str | None:
    """Where S3 is, unless an option says otherwise; None: at Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def can_read_into(url: str, options: _Options) -> bool:
    """Whether `read_into` knows this place: S3, and no option that s3fs alone understands."""
    return url.startswith(SCHEMES) and {name for name, _ in options} <= _KNOWN_OPTIONS


def read_into(url: str, options: _Options, start: int, target: memoryview) -> int:
    """Fill `target` with an object's bytes from `start`, in one request.

    Args:
        url: of the object.
        options: s3fs's, of which `can_read_into` approves.
        start: the first byte.
        target: of bytes, writable.

    Returns:
        How many bytes there were: fewer than asked for only where the object ends before.

    Raises:
        OSError: there is no such object, or access is denied, as s3fs would raise it.
        StorageError: the answer is not what was asked for.
        botocore's: the request failed, or brought less than it said it would.
    """
    import botocore.exceptions
    import s3fs.errors

    bucket, _, key = url.split("://", 1)[1].partition("/")
    wanted = f"bytes={start}-{start + len(target) - 1}"
    try:
        response = _client(options).get_object(Bucket=bucket, Key=key, Range=wanted)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "InvalidRange":
            return 0
        raise s3fs.errors.translate_boto_error(error) from error
    body, filled = response["Body"], 0
    try:
        expected = _announced(response, start, len(target))
        while filled < expected:
            count = body.readinto(target[filled : min(filled + _READ_BYTES, expected)])
            if count == 0:
                break
            filled += count
    finally:
        body.close()
    if filled != expected:
        raise StorageError(
            f"Bytes {start:,} to {start + expected:,} of {url} came back as {filled:,} bytes."
        )
    return filled


def _announced(response: dict[str, Any], start: int, wanted: int) -> int:
    """How many of the bytes asked for the object has, by the answer's `Content-Range`."""
    found = response.get("ContentRange", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", found)
    if match is None or int(match[1]) != start:
        raise StorageError(f"S3 answered {found!r} instead of bytes from {start:,}.")
    return min(wanted, int(match[2]) - start)


def _client(options: _Options) -> Any:  # noqa: ANN401 - botocore is untyped
    key = (os.getpid(), options)
    with _MAKING:
        if key not in _CLIENTS:
            _CLIENTS[key] = _new_client(dict(options))
        return _CLIENTS[key]


def _new_client(options: dict[str, str]) -> Any:  # noqa: ANN401
    from botocore.config import Config
    from botocore.session import Session

    return Session(profile=options.get("profile")).create_client(
        "s3",
        endpoint_url=options.get("endpoint_url") or endpoint_of_environment(),
        aws_access_key_id=options.get("key"),
        aws_secret_access_key=options.get("secret"),
        aws_session_token=options.get("token"),
        config=Config(max_pool_connections=_CONNECTIONS, **REQUEST_SETTINGS),
    )
