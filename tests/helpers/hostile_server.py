"""HTTP servers that do not keep to what they were asked for."""

import contextlib
import time

from tests.helpers.range_server import RangeHandler

PIECE = bytes(2**20)


class _Hostile(RangeHandler):
    def do_GET(self):
        # The client goes away; the server may be stopped.
        with contextlib.suppress(OSError):
            self.attack()

    def attack(self):
        raise NotImplementedError

    do_HEAD = do_GET  # noqa: N815 - the name of the server

    def head(self, status, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()


class IgnoresRanges(_Hostile):
    """Sends eight gigabytes, whatever was asked for."""

    def attack(self):
        self.head(200, ("Content-Length", str(8 * 2**30)))
        for _ in range(8 * 2**10):
            self.wfile.write(PIECE)


class SendsMore(_Hostile):
    """Says that it sends eight gigabytes of the range."""

    def attack(self):
        size = 8 * 2**30
        self.head(
            206, ("Content-Length", str(size)), ("Content-Range", f"bytes 0-{size - 1}/{size}")
        )
        for _ in range(8 * 2**10):
            self.wfile.write(PIECE)


class SendsMoreThanItSays(_Hostile):
    """The range that was asked for, eight gigabytes long."""

    def attack(self):
        self.head(206, ("Content-Length", str(8 * 2**30)), ("Content-Range", "bytes 0-999/1000"))
        for _ in range(8 * 2**10):
            self.wfile.write(PIECE)


class ByteASecond(_Hostile):
    def attack(self):
        self.head(206, ("Content-Length", "1000"), ("Content-Range", "bytes 0-999/1000"))
        for _ in range(1000):
            self.wfile.write(b"{")
            self.wfile.flush()
            time.sleep(1)


class HeaderBytes(_Hostile):
    """A header that never ends, byte by byte."""

    def attack(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(1000):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.1)


class RedirectsForever(_Hostile):
    def attack(self):
        self.head(302, ("Location", f"/{time.monotonic_ns()}"), ("Content-Length", "0"))


class LongContentRange(_Hostile):
    def attack(self):
        self.head(206, ("Content-Length", "5"), ("Content-Range", f"bytes 0-4/{'9' * 6_000}"))
        self.wfile.write(b"hello")


class OtherRange(_Hostile):
    """Another part of the file than was asked for."""

    def attack(self):
        self.head(206, ("Content-Length", "5"), ("Content-Range", "bytes 700-704/9000"))
        self.wfile.write(b"hello")


HOSTILE = [
    IgnoresRanges,
    SendsMore,
    SendsMoreThanItSays,
    ByteASecond,
    RedirectsForever,
    LongContentRange,
    OtherRange,
]
