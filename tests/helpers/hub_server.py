"""A Hugging Face Hub for one public repository: its listing and its files, read only.

The Hub cannot be reached from tests. What is answered here is what huggingface_hub's own client
asks: of the repository (`/api/datasets/ID`), of folders (`…/tree/REVISION/PATH`), of paths
(`…/paths-info/REVISION`), and for files by ranges (`/datasets/ID/resolve/REVISION/PATH`, and
`/ID/resolve/REVISION/PATH` of a model).
"""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.range_server import RangeHandler, RangeServer

COMMIT = "0" * 40


class HubServer(RangeServer):
    """Serves a folder as a repository; `hf` is its URL, `options` say where it is."""

    hf = "hf://datasets/me/x"

    def __init__(self, folder: Path, repository: str = "datasets/me/x") -> None:
        """Serve the folder as `datasets/OWNER/NAME` or `models/OWNER/NAME`."""
        super().__init__(folder, _HubHandler)
        self.api = f"/api/{repository}"
        self.files = f"/{repository.removeprefix('models/')}/resolve/"
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
        server = self.server_of
        # The branch, and the one commit that it has.
        path = path.replace(COMMIT, "main", 1)
        if path.startswith(f"{server.files}main/"):
            return self._answer_file(path.removeprefix(f"{server.files}main/"), send)
        if path in (server.api, f"{server.api}/revision/main"):
            return self._json({"id": "me/x", "sha": COMMIT, "private": False, "siblings": []})
        if path.startswith(f"{server.api}/tree/main"):
            folder = path.removeprefix(f"{server.api}/tree/main").strip("/")
            return self._tree(folder, "true" in parse_qs(parts.query)["recursive"][0].lower())
        return self._reply(404, b"", send, ("X-Error-Code", "RepoNotFound"))

    def _reply(self, status, body, send, *headers):
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        super()._reply(status, body, send, *headers, ("ETag", etag), ("X-Repo-Commit", COMMIT))

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
