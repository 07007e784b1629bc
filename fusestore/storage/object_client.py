"""Clients of S3 and HTTP: opened once, shared by all threads, refused in a forked process.

obstore runs its requests on its own threads. A forked child lacks them and would wait forever. So
obstore is imported and opened when a remote location is first used, and a process that was forked
after that is refused.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.storage import s3
from fusestore.storage.object_errors import plain_error
from fusestore.storage.options import S3_SCHEMES, HttpOptions, Pairs, S3Options, environment_options
from fusestore.storage.shown import shown

RETRIES = 2
"""Retries of each request, by obstore; `storage.retries` repeats the whole verb besides."""

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
"""How long a server may send nothing; then the request is given up, and sent again."""

UPLOAD_BYTES_PER_TIMEOUT = 8 * 2**20
"""A server answers when it has all of a body. So each further 8 MiB of it get the time once more: a
line of half a megabyte a second is fast enough."""

_SIGNAL_CHECK_S = 0.2

_Result = TypeVar("_Result")

_Key = tuple[str, Pairs, int]

_CLIENTS: dict[_Key, Any] = {}
"""By bucket or server, options, and how many timeouts an upload may take."""

_OPENING = threading.Lock()
_opened_in: int | None = None
"""The process whose threads serve obstore."""


def ask(
    url: str, options: Pairs, verb: Callable[[Any, str], _Result], *, upload_bytes: int = 0
) -> _Result:
    """Call `verb` with the client of a URL and the object's key; raise errors of Python or ours.

    Args:
        url: of an object.
        options: of its storage.
        verb: makes the requests.
        upload_bytes: size of the largest body that it sends in one request.

    Raises:
        FileNotFoundError: there is no such object, or no such bucket.
        PermissionError: access is denied.
        FileExistsError: the object exists already.
        StorageError: the request failed, or the answer does not fit the request.
        InvalidInputError: the storage does not accept this name or an option.
    """
    if threading.current_thread() is not threading.main_thread():
        return _ask(url, options, verb, upload_bytes)
    # obstore does not see Ctrl-C, so the main thread must not wait for it.
    return in_a_thread(lambda: _ask(url, options, verb, upload_bytes))


def _ask(
    url: str, options: Pairs, verb: Callable[[Any, str], _Result], upload_bytes: int
) -> _Result:
    root, key = split(url)
    # A power of two, so that there are few clients.
    timeouts = 1 << (max(0, upload_bytes - 1) // UPLOAD_BYTES_PER_TIMEOUT).bit_length()
    client = (root, options, timeouts)
    try:
        return verb(_client(client), key)
    except (FusestoreError, KeyboardInterrupt):
        raise
    except Exception as error:
        problem, status = plain_error(error, url)
        if problem is error:
            raise
    # The request may have gone to another region than the bucket's.
    if url.startswith(S3_SCHEMES) and status in s3.ELSEWHERE and _reopened_in_region(client):
        try:
            return verb(_client(client), key)
        except FusestoreError:
            raise
        except Exception as error:
            problem, _ = plain_error(error, url)
            if problem is error:
                raise
    # The error of obstore shows the server's answer, which may hold a session's token.
    raise problem from None


def split(url: str) -> tuple[str, str]:
    """The bucket or server, and the object's key in it."""
    if url.startswith(S3_SCHEMES):
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        return f"{scheme}://{bucket}", key
    parts = urlsplit(url)
    query = f"/?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{query}", unquote(parts.path).strip("/")


def _client(key: _Key) -> Any:  # noqa: ANN401
    global _opened_in
    if _opened_in not in (None, os.getpid()):
        raise InvalidInputError(
            f"This process was forked from one that had read remote storage, and cannot read "
            f"{shown(key[0])}: start it by forkserver or spawn, such as "
            'DataLoader(…, multiprocessing_context="forkserver").'
        )
    with _OPENING:
        if key not in _CLIENTS:
            _CLIENTS[key] = _open(key)
            _opened_in = os.getpid()
        return _CLIENTS[key]


def _reopened_in_region(key: _Key) -> bool:
    """Open a bucket again in its region; False if the region is unknown or the same as before."""
    root, options, _ = key
    region = s3.region_of_bucket(root, s3_options(root, options))
    if region is None or region == _CLIENTS[key].config.get("region"):
        return False
    with _OPENING:
        _CLIENTS[key] = _open(key, region)
    return True


def s3_options(url: str, options: Pairs) -> S3Options:
    """The options of an S3 location, over those of the environment."""
    return S3Options.of({**environment_options(S3Options, "s3"), **dict(options)}, url)


def _open(key: _Key, region: str | None = None) -> Any:  # noqa: ANN401
    from obstore.store import HTTPStore, S3Store

    root, pairs, timeouts = key
    options: S3Options | HttpOptions
    if root.startswith(S3_SCHEMES):
        options = s3_options(root, pairs)
    else:
        options = HttpOptions.of({**environment_options(HttpOptions, "http"), **dict(pairs)}, root)
    read_timeout = timedelta(seconds=(options.read_timeout or READ_TIMEOUT_S) * timeouts)
    client: Any = {
        "allow_http": _is_plain(root, options),
        "connect_timeout": timedelta(seconds=options.connect_timeout or CONNECT_TIMEOUT_S),
        "read_timeout": read_timeout,
        # For the whole answer, which may be large and the line slow.
        "timeout": timedelta(days=1),
        **s3.certificates(),
    }
    retries: Any = {"max_retries": RETRIES, "retry_timeout": read_timeout}
    if isinstance(options, HttpOptions):
        client["default_headers"] = options.headers
        return HTTPStore(root, client_options=client, retry_config=retries)
    config: Any
    config, credentials = s3.settings(root, options)
    if region is not None:
        config["region"] = region
    return S3Store(
        root.split("://", 1)[1],
        config=config,
        client_options=client,
        retry_config=retries,
        credential_provider=credentials,
    )


def _is_plain(root: str, options: S3Options | HttpOptions) -> bool:
    """Whether requests go by http; by https no redirect may lead to what others can read."""
    url = s3.endpoint(options) if isinstance(options, S3Options) else root
    return url is not None and url.startswith("http://")


def in_a_thread(verb: Callable[[], _Result], limit_s: float = math.inf) -> _Result:
    """Call `verb` in a new thread, and wait for its result so that Ctrl-C ends the wait.

    Raises:
        TimeoutError: it takes longer than `limit_s`; the thread is left to itself.
    """
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((verb(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    end = time.monotonic() + limit_s
    while True:
        if time.monotonic() > end:
            raise TimeoutError(f"no answer within {limit_s:g} seconds")
        # A signal may have come to another thread of the process, and does not end a longer wait.
        with contextlib.suppress(queue.Empty):
            result, problem = answers.get(timeout=_SIGNAL_CHECK_S)
            break
    if problem is not None:
        raise problem
    answer: _Result = result
    return answer
