"""Servers on this machine, in processes of their own, and links that carry so much and no more."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import botocore.config
import requests

from fusestore.data.shard_cache.download import CONNECTIONS

Get = Callable[[str], int]
"""Gets an object by its name and throws it away; how many bytes it had."""

AT_ONCE = 2**17
"""Bytes that a link carries before others have their turn."""

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What moto's server is asked with."""

RETRIES = {"max_attempts": 20, "mode": "standard"}


class Place(NamedTuple):
    """Where a dataset lies, and how to get an object of it."""

    url: str
    options: dict[str, str]
    get: Get


class Link:
    """Carries at most `rate` bytes per second, of all threads together."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, num_bytes: int) -> None:
        """Until so many more bytes are through."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + num_bytes / self._rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def beside(target: Callable[..., None], *args: Any) -> Iterator[int]:
    """A server in a process of its own, which is told a place for its port; yields the port."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    process = context.Process(target=target, args=(*args, port), daemon=True)
    process.start()
    while port.value == 0:
        time.sleep(0.01)
    yield port.value
    process.terminate()
    process.join()


@contextlib.contextmanager
def site(folder: Path, rate: float) -> Iterator[Place]:
    """The folder behind HTTP, over a link; and requests' GET."""
    with beside(serve, str(folder), rate) as port:
        url = f"http://127.0.0.1:{port}"
        yield Place(url, {}, http_get(url))


def http_get(url: str) -> Get:
    sessions = threading.local()

    def get(name: str) -> int:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
        return len(sessions.own.get(f"{url}/{name}").content)

    return get


@contextlib.contextmanager
def bucket(folder: Path, name: str, rate: float | None) -> Iterator[Place]:
    """A bucket of moto's S3 server with the folder's files, over a link or none; boto3's GET."""
    import boto3

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(server.wait)
        stack.callback(server.terminate)
        os.environ |= KEYS
        config = botocore.config.Config(max_pool_connections=CONNECTIONS, retries=RETRIES)

        def client(port: int) -> Any:
            return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", config=config)

        filling = client(port)
        filling.create_bucket(Bucket=name)
        for path in folder.rglob("*"):
            if path.is_file():
                filling.upload_file(str(path), name, path.relative_to(folder).as_posix())
        if rate is not None:
            port = stack.enter_context(beside(relay, port, rate))
        reading = client(port)

        def get(key: str) -> int:
            return len(reading.get_object(Bucket=name, Key=key)["Body"].read())

        yield Place(f"s3://{name}", {"endpoint_url": f"http://127.0.0.1:{port}"}, get)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def relay(server: int, rate: float, port: Any) -> None:
    """Pass connections on to a port of this machine; what it answers comes over a link."""
    link = Link(rate)

    def carry(source: socket.socket, target: socket.socket, over_the_link: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(AT_ONCE):
                if over_the_link:
                    link.wait(len(data))
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    listener = socket.create_server(("127.0.0.1", 0))
    port.value = listener.getsockname()[1]
    while True:
        client, _ = listener.accept()
        there = socket.create_connection(("127.0.0.1", server))
        for end in (client, there):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for args in ((client, there, False), (there, client, True)):
            threading.Thread(target=carry, args=args, daemon=True).start()


def serve(folder: str, rate: float, port: Any) -> None:
    """The folder's files over a link."""
    link = Link(rate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # As servers of files do: otherwise a small file waits 40 ms for its header's receipt.
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = Path(folder) / self.path.lstrip("/")
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            start, stop = (int(match[1]), min(int(match[2]) + 1, size)) if match else (0, size)
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            with path.open("rb") as file:
                while start < stop:
                    count = min(AT_ONCE, stop - start)
                    link.wait(count)
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, count)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()
