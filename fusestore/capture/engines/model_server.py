"""One model server: JSON over HTTP, one attempt a call, and nothing that it answers is trusted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

import urllib3

from fusestore.capture.engines.served_rows import BadAnswerError
from fusestore.errors import EngineError, InvalidInputError

KEY_VARIABLE = "FUSESTORE_SERVER_KEY"
"""Environment variable with the key that servers ask for (`Authorization: Bearer`)."""

_CONNECT_SECONDS = 10.0
_BLOCK = 2**16
_MAX_ERROR_BYTES = 2**16
_MAX_RETRY_AFTER = 60.0
_TRANSIENT = frozenset({408, 425, 429})


class UnavailableError(EngineError):
    """The server cannot answer at present.

    Attributes:
        retry_after: seconds to wait, if the server said so.
        restarted: whether the connection failed, so that another process may answer next.
    """

    def __init__(
        self, message: str, retry_after: float | None = None, *, restarted: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.restarted = restarted


class ModelServer:
    """Attributes: `url`, as it was given, without a slash at its end."""

    def __init__(self, url: str, connections: int, timeout: float) -> None:
        """Nothing is connected yet.

        Args:
            url: `http://HOST:PORT`, with a path if need be.
            connections: most requests at once.
            timeout: seconds that an answer may take as a whole.

        Raises:
            InvalidInputError: this is no such URL.
        """
        try:
            parts = urlsplit(url)
            _ = parts.port
            whole = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        except ValueError:
            whole = False
        if not whole:
            raise InvalidInputError(
                f"{url!r} is no URL of a server. Give it as http://HOST:PORT, without /v1."
            )
        if parts.username is not None:
            raise InvalidInputError(
                f"The URL of the server at {parts.hostname} holds a user name, and would be shown "
                f"in messages. Set {KEY_VARIABLE} to the key instead."
            )
        self.url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self._pool = urllib3.connection_from_url(
            f"{parts.scheme}://{parts.netloc}",
            maxsize=connections,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=timeout),
        )
        self._sockets = _Sockets()
        self._pool.ConnectionCls = _registered(self._pool.ConnectionCls, self._sockets)

    def get(self, path: str, max_bytes: int) -> Any:  # noqa: ANN401 - parsed JSON
        """The parsed answer of a GET; errors as for `post`."""
        return self._ask("GET", path, None, max_bytes)

    def post(self, path: str, content: Any, max_bytes: int) -> Any:  # noqa: ANN401 - parsed JSON
        """The parsed answer of a POST.

        Args:
            path: below the URL, beginning with a slash.
            content: is sent as JSON.
            max_bytes: most bytes of the answer.

        Raises:
            UnavailableError: connection, timeout, 429 or 5xx; another try may succeed.
            BadAnswerError: no JSON, or more bytes than that.
            EngineError: the request is refused (another 4xx); another try would be too.
        """
        return self._ask("POST", path, json.dumps(content).encode(), max_bytes)

    def close(self) -> None:
        """Close the connections; a request that another thread waits for fails at once."""
        self._sockets.shut_down()
        self._pool.close()

    def _ask(self, method: str, path: str, body: bytes | None, max_bytes: int) -> Any:  # noqa: ANN401
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(KEY_VARIABLE)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.urlopen(
                method,
                f"{self._path}{path}",
                body,
                headers,
                redirect=False,
                preload_content=False,
                # Nothing was asked for compressed, and a small answer could become a large one.
                decode_content=False,
            )
            try:
                limit = max_bytes if response.status == 200 else _MAX_ERROR_BYTES
                answer = _read(response, limit, deadline)
            except BaseException:
                # What is left of the answer must not be read as the next one.
                response.close()
                raise
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"the connection failed ({shown(str(error) or type(error).__name__)})",
                restarted=True,
            ) from error
        if response.status != 200:
            raise _refusal(response, path, answer)
        return _parse(answer)


class _Sockets:
    """The sockets of a server's connections, those that a request waits on included.

    urllib3 closes idle connections only: a thread that waits for an answer would wait until its
    timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False

    def add(self, opened: socket.socket) -> None:
        """Register a socket.

        Raises:
            ConnectionAbortedError: they were shut down before.
        """
        with self._lock:
            if not self._closed:
                self._open.add(opened)
                return
        opened.close()
        raise ConnectionAbortedError("the client is closed")

    def shut_down(self) -> None:
        """End all connections now, and every later one as soon as it is made."""
        with self._lock:
            self._closed = True
            for each in self._open:
                with contextlib.suppress(OSError):
                    # Not the method of an SSLSocket, whose state the waiting thread still reads.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)


def _registered(connection: Any, sockets: _Sockets) -> Any:  # noqa: ANN401 - a class of urllib3
    """A class of connections that registers their sockets."""

    class Connection(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Connection


def _read(response: urllib3.BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    answer = bytearray()
    while block := response.read(_BLOCK):
        answer += block
        if len(answer) > limit:
            raise BadAnswerError(f"the answer has more than {limit:,} bytes")
        if time.monotonic() > deadline:
            raise UnavailableError("the answer took too long", restarted=True)
    return bytes(answer)


def _parse(answer: bytes) -> Any:  # noqa: ANN401 - parsed JSON
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(answer, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"the answer is no JSON ({shown(str(error))})") from error


def _refusal(response: urllib3.BaseHTTPResponse, path: str, answer: bytes) -> EngineError:
    status = response.status
    message = f"it answered {status} to {path}: {shown(answer.decode('utf-8', 'replace'))}"
    if status in _TRANSIENT or status >= 500:
        after = response.headers.get("Retry-After", "")
        seconds = min(float(after), _MAX_RETRY_AFTER) if re.fullmatch("[0-9]{1,9}", after) else None
        return UnavailableError(message, seconds)
    if status in (401, 403):
        message += f". Set {KEY_VARIABLE} to the server's key"
    return EngineError(message)


def shown(text: str, length: int = 300) -> str:
    """Text of a server for a message: at most `length` characters, none of them a control one."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return "".join(character if character.isprintable() else " " for character in cut).strip()
