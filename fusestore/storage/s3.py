"""Configuration of S3: the environment, credentials, a bucket's region."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fusestore.errors import AccessDeniedError, InvalidInputError
from fusestore.storage.options import S3Options

ELSEWHERE = {301, 307, 400}
"""Statuses of S3 for a bucket in another region; they have other causes too."""

_CREDENTIALS_LAST = timedelta(minutes=5)
_REGION_TIMEOUT_S = 10

_Settings = dict[str, Any]
_Credentials = Callable[[], Any]


def endpoint(options: S3Options) -> str | None:
    """URL of the S3 service; None means Amazon's."""
    return (
        options.endpoint_url
        or options.client_kwargs.endpoint_url
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )


def settings(root: str, options: S3Options) -> tuple[_Settings, _Credentials | None]:
    """The configuration by which obstore opens a bucket, and a source of credentials.

    Options precede the environment, which precedes botocore's other sources: profiles, SSO, web
    identities, containers and instances.

    Args:
        root: URL of the bucket.
        options: of the storage.

    Raises:
        InvalidInputError: no region or profile of that name.
        AccessDeniedError: there are no credentials.
    """
    url = endpoint(options)
    config: _Settings = {
        # Amazon wants buckets in host names, but its certificates do not cover names with dots.
        # Other servers do not resolve such host names.
        "virtual_hosted_style_request": url is None and "." not in root.split("://", 1)[1],
        "request_payer": options.requester_pays,
    }
    if url is not None:
        config["endpoint"] = config["aws_endpoint_url_s3"] = url
    region = options.region or options.client_kwargs.region_name
    region = region or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    credentials: _Credentials | None = None
    if options.anon:
        config["skip_signature"] = True
    elif options.key is not None or options.secret is not None:
        credentials = _fixed(options.key, options.secret, options.token)
    elif options.profile is None and _first("AWS_ACCESS_KEY_ID"):
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        credentials = _fixed(*map(os.environ.get, names))
    else:
        session = _session(options.profile)
        credentials = _provider(root, session)
        region = region or session.get_config_variable("region")
    return {**config, "region": region or "us-east-1"}, credentials


def certificates() -> dict[str, bytes]:
    """Certificates of an authority that only the environment names, as a client option."""
    path = _first("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    if path is None or not Path(path).is_file():
        return {}
    return {"root_certificate": Path(path).read_bytes()}


def region_of_bucket(root: str, options: S3Options) -> str | None:
    """The region of a bucket according to S3, which reveals it even when it denies access."""
    url = f"{endpoint(options) or 'https://s3.amazonaws.com'}/{root.split('://', 1)[1]}"
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_asked_region(url)), daemon=True).start()
    # A server may send a header byte by byte, which no timeout of a socket ends.
    with contextlib.suppress(queue.Empty):
        return answers.get(timeout=_REGION_TIMEOUT_S)
    return None


def _asked_region(url: str) -> str | None:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_REGION_TIMEOUT_S) as answer:  # noqa: S310
            headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    except (OSError, http.client.HTTPException):
        return None
    region: str | None = headers.get("x-amz-bucket-region")
    return region


def _fixed(key: str | None, secret: str | None, token: str | None) -> _Credentials:
    # A provider, because obstore mixes credentials in settings with those of the environment.
    return lambda: {
        "access_key_id": key or "",
        "secret_access_key": secret or "",
        "token": token or None,
        "expires_at": None,
    }


def _session(profile: str | None) -> Any:  # noqa: ANN401 - botocore is untyped
    from botocore.session import Session

    return Session(profile=profile)


def _provider(root: str, session: Any) -> _Credentials:  # noqa: ANN401
    from botocore.exceptions import BotoCoreError

    try:
        credentials = session.get_credentials()
    except BotoCoreError as error:
        raise InvalidInputError(f"{root} cannot be opened: {error}") from error
    if credentials is None:
        raise AccessDeniedError(
            f"No usable credentials for {root}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or use --storage-option."
        )

    def current_credentials() -> dict[str, Any]:
        # botocore renews expiring credentials, so they are asked for every few minutes.
        current = credentials.get_frozen_credentials()
        return {
            "access_key_id": current.access_key,
            "secret_access_key": current.secret_key,
            "token": current.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }

    return current_credentials


def _first(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
