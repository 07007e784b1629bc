"""How S3 is talked to, and ranges of its objects, by botocore, on which s3fs stands.

botocore's `get_object` takes two to three milliseconds of the processor a request. Here botocore
signs a URL and sends it by its own HTTP session, with its certificates, proxies and time limits,
which takes a third of that. An answer that asks for more, as that of a bucket in another region
does, is left to `get_object`.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from fusestore.errors import StorageError
from fusestore.storage.answer import (
    Answer,
    body_of,
    bytes_announced,
    bytes_of_whole,
    range_header,
)

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

_ELSEWHERE = {301, 307, 400}
"""What S3 answers where a bucket lies in another region, among other things; botocore finds it."""

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


def get_range(
    url: str, options: _Options, start: int, wanted: int, *, whole: bool
) -> Answer | None:
    """Ask for some bytes of an object; None where it ends before they begin.

    Args:
        url: of the object.
        options: s3fs's; `knows` approves of both.
        start: the first byte.
        wanted: how many.
        whole: whether these are supposed to be all that the object has.

    Raises:
        OSError: there is no such object, or access is denied, as s3fs would raise it.
        StorageError: the answer is not what was asked for.
        botocore's: the request failed.
    """
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    bucket, _, key = url.split("://", 1)[1].partition("/")
    asked = {} if whole else range_header(start, wanted)
    client, named = _client(options), {"Bucket": bucket, "Key": key}
    try:
        status, headers, body = _send_signed(url, client, named, asked)
        if status in _ELSEWHERE:
            body.close()
            response = client.get_object(**named, **asked)
            body, metadata = response["Body"], response["ResponseMetadata"]
            status, headers = metadata["HTTPStatusCode"], metadata["HTTPHeaders"]
    except ClientError as error:
        if error.response["Error"].get("Code") == "InvalidRange":
            return None
        raise translate_boto_error(error) from error
    try:
        if status == 200 and start == 0:
            return Answer(body, bytes_of_whole(headers, wanted))
        return Answer(body, bytes_announced(headers.get("content-range"), url, start, wanted))
    except StorageError:
        body.close()
        raise


def _send_signed(
    where: str,
    client: Any,  # noqa: ANN401 - botocore is untyped
    named: dict[str, str],
    asked: dict[str, str],
) -> tuple[int, Any, Any]:
    """Status, headers and unread body of the answer to a GET; some may be botocore's to handle.

    Raises:
        ClientError: S3 refused, as `get_object` would raise it.
        StorageError: the request failed.
    """
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import create_parser

    url = client.generate_presigned_url("get_object", Params=named)
    request = AWSRequest("GET", url, headers=asked, stream_output=True).prepare()
    try:
        # There is no public way to the session that the client made of its configuration.
        response = client._endpoint.http_session.send(request)
    except BotoCoreError as error:
        # Whoever reads a signed URL in a log can use it; and it may hold a session's token.
        problem = str(error).replace(url, url.split("?", 1)[0])
        raise StorageError(f"{where} could not be reached: {problem}") from None
    status = response.status_code
    if status < 300 or status in _ELSEWHERE:
        return status, response.headers, body_of(response.raw)
    answer = {"status_code": status, "headers": response.headers, "body": response.content}
    shape = client.meta.service_model.operation_model("GetObject").output_shape
    raise ClientError(create_parser("rest-xml").parse(answer, shape), "GetObject")


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
        config=Config(
            max_pool_connections=_CONNECTIONS,
            # Signed URLs are of an older kind otherwise, which newer regions refuse.
            signature_version="s3v4",
            **REQUEST_SETTINGS,
        ),
    )
