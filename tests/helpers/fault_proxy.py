"""A proxy in front of an S3 server that lets some requests fail, as networks and servers do."""

import collections
import contextlib
import http.client
import random
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "cut answer", "cut upload", "lost answer")
"""What may happen to a request.

500, 503: the server says so, and does nothing.
reset: the connection ends before the request is read.
cut upload: the connection ends in the middle of the request's body; nothing arrives.
cut answer: the connection ends in the middle of the answer's body.
lost answer: the server does what it is asked, and the connection ends before it says so.
hang (only when asked for): no answer for as long as `hang_s`.
short (only when asked for): an answer that claims to be whole and is not.
403 (only when asked for): access is denied.
301, 307, 400 (only when asked for): the bucket lies in another region.
"""

_ANSWERS = {
    "500": "InternalError",
    "503": "SlowDown",
    "403": "AccessDenied",
    "301": "PermanentRedirect",
    "307": "TemporaryRedirect",
    "400": "AuthorizationHeaderMalformed",
}


class FaultProxy:
    """A context; `url` is where it listens, `requests` what it was asked: methods and paths.

    Args:
        upstream: URL of the server behind it.
        rate: share of requests that fail, each in one of the `kinds`.
        seed: decides which, and how.
        kinds: the faults to choose from.
        hang_s: seconds that a hanging request hangs.
    """

    def __init__(self, upstream, rate=0.0, seed=0, kinds=FAULTS, hang_s=5.0):
        self.upstream = urlsplit(upstream)
        self.rate = rate
        self.kinds = kinds
        self.hang_s = hang_s
        self.planned = collections.deque()
        self.happened = collections.Counter()
        self.num_requests = 0
        self.seconds_per_body = 0.0
        self.requests = []
        self.ended = threading.Event()
        self._choice = random.Random(seed)  # noqa: S311 - repeatable
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def plan(self, *faults):
        """What happens to the next requests, in order; None is nothing."""
        self.planned.extend(faults)

    def next_fault(self):
        with self._lock:
            self.num_requests += 1
            if self.planned:
                fault = self.planned.popleft()
            elif self._choice.random() < self.rate:
                fault = self._choice.choice(self.kinds)
            else:
                fault = None
            if fault is not None:
                self.happened[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    # Otherwise a small answer waits 40 ms for the receipt of its header.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle(self):
        # The client may be gone; that is what this is about.
        with contextlib.suppress(OSError):
            super().handle()

    def _serve(self):
        self.proxy.requests.append((self.command, self.path))
        fault = self.proxy.next_fault()
        if fault == "reset":
            return self._reset()
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut upload":
            self.rfile.read(length // 2)
            return self._reset()
        if length:
            self.proxy.ended.wait(self.proxy.seconds_per_body)
        body = self._chunked() if self.headers.get("Transfer-Encoding") else self.rfile.read(length)
        if fault == "hang":
            self.proxy.ended.wait(self.proxy.hang_s)
            return self._reset()
        if fault in _ANSWERS:
            code = _ANSWERS[fault]
            answer = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
            return self._answer(int(fault), [("Content-Type", "application/xml")], answer)
        status, headers, answer = self._forward(body)
        if fault == "lost answer":
            return self._reset()
        if fault == "short":
            answer = answer[: len(answer) // 2]
        if fault == "cut answer":
            self._answer(status, headers, answer, send=len(answer) // 2)
            return self._reset()
        return self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - as http.server wants them

    def _chunked(self):
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body):
        server = http.client.HTTPConnection(self.proxy.upstream.netloc, timeout=60)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("connection", "transfer-encoding", "expect")
            }
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            server.close()

    def _answer(self, status, headers, body, send=None):
        self.send_response_only(status)
        for name, value in headers:
            # The length of a HEAD's answer is that of the body it leaves out.
            own = name.lower() == "content-length" and self.command != "HEAD"
            if not own and name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if send is None else body[:send])

    def _reset(self):
        self.close_connection = True
        # Closing with data unsent: the other side sees a reset rather than an end.
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RDWR)
