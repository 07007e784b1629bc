"""How S3 is talked to, and ranges of its objects, by botocore, on which s3fs stands."""

from __future__ import annotations

import os
import threading
from typing import Any

from fusestore.errors import StorageError
from fusestore.storage.answer import Answer, bytes_announced

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

_Options = tuple[tuple[str, str], ...]
_CLIENTS: dict[tuple[int, _Options], Any] = {}
"""By process id and options: never shared across a fork."""

_MAKING = threading.Lock()
"""botocore's clients may be used by several threads, but not made."""


def endpoint_of_environment() -> str | None:
    """Where S3 is, unless an option says otherwise; None: at Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def knows(url: str, options: _Options) -> bool:
    """Whether this is S3, without an option that s3fs alone understands."""
    return url.startswith(SCHEMES) and {name for name, _ in options} <= _KNOWN_OPTIONS


def get_range(url: str, options: _Options, start: int, wanted: int) -> Answer | None:
    """Ask for some bytes of an object; None where it ends before they begin.

    Raises:
        OSError: there is no such object, or access is denied, as s3fs would raise it.
        StorageError: the answer is not what was asked for.
        botocore's: the request failed.
    """
    import botocore.exceptions
    import s3fs.errors

    bucket, _, key = url.split("://", 1)[1].partition("/")
    try:
        response = _client(options).get_object(
            Bucket=bucket, Key=key, Range=f"bytes={start}-{start + wanted - 1}"
        )
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "InvalidRange":
            return None
        raise s3fs.errors.translate_boto_error(error) from error
    try:
        num_bytes = bytes_announced(response.get("ContentRange"), url, start, wanted)
    except StorageError:
        response["Body"].close()
        raise
    return Answer(response["Body"], num_bytes)


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
