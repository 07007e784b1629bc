"""A Hugging Face Hub for one public dataset repository: its listing and its files, read only.

The Hub cannot be reached from tests. What is answered here is what huggingface_hub's own client
asks: of the repository (`/api/datasets/ID`), of folders (`…/tree/REVISION/PATH`), of paths
(`…/paths-info/REVISION`), and for files by ranges (`/datasets/ID/resolve/REVISION/PATH`).
"""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.range_server import RangeHandler, RangeServer

COMMIT = "0" * 40


class HubServer(RangeServer):
    """Serves a folder as dataset repository `me/x`; `hf` is its URL, `options` say where it is."""

    hf = "hf://datasets/me/x"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _HubHandler)
        self.options = {"endpoint": self.url, "token": "anybody"}
        self.denies = False


class _HubHandler(RangeHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        form = parse_qs(self.rfile.read(length).decode())
        self._json([self._entry(path) for path in form["paths"] if self._file(path).exists()])

    def _answer(self, send):
        if self.server_of.denies:
            return self._reply(403, b"", send)
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path.startswith("/datasets/me/x/resolve/main/"):
            return self._answer_file(path.removeprefix("/datasets/me/x/resolve/main/"), send)
        if path in ("/api/datasets/me/x", "/api/datasets/me/x/revision/main"):
            return self._json({"id": "me/x", "sha": COMMIT, "private": False, "siblings": []})
        if path.startswith("/api/datasets/me/x/tree/main"):
            folder = path.removeprefix("/api/datasets/me/x/tree/main").strip("/")
            return self._tree(folder, "true" in parse_qs(parts.query)["recursive"][0].lower())
        return self._reply(404, b"", send, ("X-Error-Code", "RepoNotFound"))

    def _tree(self, folder, recursive):
        where = self._file(folder)
        if not where.is_dir():
            return self._reply(404, b"", True, ("X-Error-Code", "EntryNotFound"))
        found = where.rglob("*") if recursive else where.iterdir()
        root = self.server_of.folder
        return self._json([self._entry(str(path.relative_to(root))) for path in sorted(found)])

    def _entry(self, path):
        file = self._file(path)
        oid = hashlib.sha256(path.encode()).hexdigest()[:40]
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": oid, "size": 0}
        return {"type": "file", "path": path, "oid": oid, "size": file.stat().st_size}

    def _file(self, path):
        return self.server_of.folder / path

    def _json(self, value):
        self._reply(200, json.dumps(value).encode(), True, ("Content-Type", "application/json"))
