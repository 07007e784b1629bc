"""The smallest HTTP server that understands ranges: `http.server` of Python does not."""

import contextlib
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer:
    """A context that serves a folder; `url` is where, `requests` what was asked for."""

    def __init__(
        self, folder: Path, handler: type | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        handler = type("Handler", (handler or RangeHandler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """Serve no more; nothing happens when it was stopped."""
        self._server.shutdown()
        self._server.server_close()


class RangeHandler(BaseHTTPRequestHandler):
    server_of: Any
    protocol_version = "HTTP/1.1"
    # Otherwise a small answer waits 40 ms for the receipt of its header.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(send=True)

    def do_HEAD(self):
        self._answer(send=False)

    def _answer(self, send):
        self._answer_file(self.path.lstrip("/"), send)

    def _answer_file(self, name, send):
        asked = self.headers.get("Range")
        if send:
            self.server_of.requests.append((self.path, asked))
        try:
            data = (self.server_of.folder / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return self._reply(404, b"", send)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        if match is None:
            return self._reply(200, data, send)
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        where = ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        return self._reply(206, data[start:stop], send, where)

    def _reply(self, status, body, send, *headers):
        # The client may be killed; that is a test, too.
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in [*headers, ("Accept-Ranges", "bytes")]:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send:
                self.wfile.write(body)
