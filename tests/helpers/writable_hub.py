"""A Hugging Face Hub that can be written to, in memory: repositories, branches, commits, LFS.

The Hub cannot be reached from tests. What is answered here is what huggingface_hub's own client
asks when it makes a repository, uploads and commits, and when `hf://` lists and reads. Shapes and
status codes are those that `huggingface_hub/_commit_api.py`, `lfs.py` and `hf_api.py` expect.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from fusestore.store.licenses import HUB_IDS
from fusestore.workflows.publishing.hub_repository import git_hash
from tests.helpers.range_server import RangeHandler, RangeServer

WRITES, READS = "hf_writes", "hf_reads"
"""Tokens. Requests with another one are those of nobody."""

LARGE_SUFFIXES = (".parquet", ".safetensors", ".bin")
PAGE = 40


@dataclass
class File:
    """One file of a commit."""

    data: bytes
    is_large: bool

    @property
    def entry(self):
        """How listings show it."""
        entry = {"type": "file", "size": len(self.data), "oid": git_hash(self.data)}
        if self.is_large:
            sha256 = hashlib.sha256(self.data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(self.data), "pointerSize": 134}
            entry["oid"] = git_hash(sha256.encode())
        return entry


@dataclass
class Commit:
    """One commit, with all files of the repository by path."""

    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Fault:
    """What goes wrong once.

    Attributes:
        pattern: of method and path.
        action: the status that is answered, or `cut`; or what is called before the request is
            served.
        after: requests of the pattern that are served first.
    """

    pattern: str
    action: int | str | Callable[[], object]
    after: int = 0


@dataclass
class Repository:
    """A repository; branches are lists of commits."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)


class WritableHub(RangeServer):
    """A context; `url` is where it is. Nothing is written to disk.

    Attributes:
        repositories: by `datasets/OWNER/NAME` or `models/OWNER/NAME`.
        objects: uploaded large files by SHA-256, whether a commit names them or not.
        asked: methods and paths of all requests.
        uploads: SHA-256 of every upload of a large file, also of the same one twice.
        faults: what will go wrong.
        large_bytes: files of this size are large.
    """

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.uploads: list[str] = []
        self.faults: list[Fault] = []
        self.large_bytes = 10 * 2**20

    def options(self, token: str | None = WRITES) -> dict[str, str]:
        """Storage options of `hf://`."""
        return {"endpoint": self.url, **({"token": token} if token else {})}

    def commits(self, name: str, branch: str = "main") -> list[Commit]:
        """The commits of a branch, without the one that a repository begins with."""
        return self.repositories[name].branches[branch][1:]

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch now."""
        found = self.repositories[name].branches[branch][-1].files
        return {path: file.data for path, file in found.items() if path != ".gitattributes"}

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> Commit:
        """Commit as somebody does in the browser."""
        return self.add(name, branch, {path: File(data, False) for path, data in files.items()})

    def add(self, name: str, branch: str, files: dict[str, File], message: str = "x") -> Commit:
        """Add files to a branch."""
        commits = self.repositories[name].branches[branch]
        before = commits[-1].files if commits else {}
        content = f"{name} {branch} {len(commits)} {sorted(files)}".encode()
        commits.append(
            Commit(hashlib.sha256(content).hexdigest()[:40], message, {**before, **files})
        )
        return commits[-1]


class _Handler(RangeHandler):
    def do_GET(self):
        self._serve(b"", send=True)

    def do_HEAD(self):
        self._serve(b"", send=False)

    def do_POST(self):
        self._serve(self._body(), send=True)

    def do_PUT(self):
        self._serve(self._body(), send=True)

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _serve(self, body, send):
        hub = self.server_of
        parts = urlsplit(self.path)
        path, query = parts.path, parse_qs(parts.query)
        asked = f"{self.command} {unquote(path)}"
        hub.asked.append(asked)
        for fault in hub.faults:
            if re.search(fault.pattern, asked):
                fault.after -= 1
                if fault.after >= 0:
                    break
                hub.faults.remove(fault)
                if callable(fault.action):
                    fault.action()
                    break
                if fault.action == "cut":
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return None
                return self._error(fault.action, "a fault", send=send)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.may_write, self.may_read = token == WRITES, token in (WRITES, READS)
        writes = self.command in ("POST", "PUT") and not re.search(
            "/(paths-info|validate-yaml|lfs-verify)", path
        )
        # Uploads are signed by their address, as those to S3 are.
        if writes and not path.startswith("/lfs/") and not self.may_write:
            return self._error(403 if self.may_read else 401, "no permission", send=send)
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user"} if self.may_read else {})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := re.fullmatch("/lfs/([0-9a-f]{64})", path):
            return self._upload(match[1], body)
        if path == "/lfs-verify":
            content = json.loads(body)
            found = hub.objects.get(content["oid"])
            is_whole = found is not None and len(found) == content["size"]
            return self._json({}) if is_whole else self._error(404, "no such object")
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body)["objects"])
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name = f"{match[1] or 'models/'}{match[2]}"
            return self._resolve(name, unquote(match[3]), unquote(match[4]), send)
        if match := re.fullmatch(r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/(.+))?", path):
            return self._api(match[1], (match[2] or "").split("/"), body, query)
        return self._error(404, "no such page", send=send)

    def _api(self, name, verb, body, query):
        hub = self.server_of
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and not self.may_read):
            return self._error(404 if self.may_read else 401, "not found", "RepoNotFound")
        if verb[0] == "branch":
            branch = unquote(verb[1])
            if branch in repository.branches:
                return self._error(409, "the branch exists")
            repository.branches[branch] = list(repository.branches["main"])
            return self._json({})
        if verb[0] in ("", "revision"):
            revision = unquote(verb[1]) if verb[0] else "main"
        else:
            revision = unquote(verb[1])
        commit = self._commit_of(repository, revision)
        if commit is None:
            return self._error(404, "no such revision", "RevisionNotFound")
        if verb[0] in ("", "revision"):
            return self._json(
                {"id": name.partition("/")[2], "sha": commit.oid, "private": repository.private}
            )
        if verb[0] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            return self._tree(commit, unquote("/".join(verb[2:])), recursive, query)
        if verb[0] == "paths-info":
            paths = parse_qs(body.decode()).get("paths", [])
            entries = dict(self._entries(commit))
            return self._json([entries[path] for path in paths if path in entries])
        if verb[0] == "preupload":
            return self._preupload(commit, json.loads(body)["files"])
        if verb[0] == "commit":
            return self._commit(name, revision, commit, body)
        return self._error(404, "no such verb")

    @staticmethod
    def _commit_of(repository, revision):
        if revision in repository.branches:
            return repository.branches[revision][-1]
        every = [each for commits in repository.branches.values() for each in commits]
        return next((each for each in every if each.oid == revision), None)

    def _create(self, wanted):
        hub = self.server_of
        owner = wanted.get("organization") or "me"
        name = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
        if owner not in ("me", "team"):
            return self._error(403, "you may not write to this namespace")
        url = f"{hub.url}/{name.removeprefix('models/')}"
        if name in hub.repositories:
            return self._json({"url": url, "error": "exists"}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        hub.repositories[name] = Repository(private, {"main": []})
        hub.add(name, "main", {".gitattributes": File(b"*.parquet filter=lfs\n", False)})
        return self._json({"url": url})

    def _validate(self, card):
        head = card.split("---\n")[1] if card.startswith("---\n") else ""
        try:
            content = yaml.safe_load(head)
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if content and content.get("license", "other") not in HUB_IDS:
            problem = {"message": '"license" must be one of [apache-2.0, mit, …]'}
            return self._json({"errors": [problem], "warnings": []}, 400)
        warnings = [] if content else [{"message": "empty or missing yaml metadata"}]
        return self._json({"errors": [], "warnings": warnings})

    def _preupload(self, commit, files):
        answers = []
        for wanted in files:
            there = commit.files.get(wanted["path"])
            is_large = wanted["path"].endswith(LARGE_SUFFIXES)
            is_text = wanted["path"].endswith((".json", ".md", ".txt"))
            is_large |= wanted["size"] >= self.server_of.large_bytes and not is_text
            answer = {
                "path": wanted["path"],
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            if there is not None:
                sha256 = hashlib.sha256(there.data).hexdigest()
                answer["oid"] = sha256 if there.is_large else git_hash(there.data)
            answers.append(answer)
        return self._json({"files": answers})

    def _batch(self, objects):
        hub = self.server_of
        answers = []
        for wanted in objects:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{hub.url}/lfs-verify"},
                }
            answers.append(answer)
        return self._json({"transfer": "basic", "objects": answers})

    def _upload(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "other bytes than were announced")
        self.server_of.objects[oid] = body
        self.server_of.uploads.append(oid)
        return self._json({})

    def _commit(self, name, branch, parent, body):
        hub = self.server_of
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", parent.oid) != parent.oid:
            return self._error(412, "the branch has moved")
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = File(data, False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.objects:
                    return self._error(400, f"object {value['oid']} was not uploaded")
                files[value["path"]] = File(hub.objects[value["oid"]], True)
            else:
                return self._error(400, f"unknown operation {line['key']}")
        made = hub.add(name, branch, files, header["summary"])
        url = f"{hub.url}/{name}/commit/{made.oid}"
        return self._json({"success": True, "commitOid": made.oid, "commitUrl": url})

    @staticmethod
    def _entries(commit):
        folders = set()
        for path, file in sorted(commit.files.items()):
            for parent in list(Path(path).parents)[:-1]:
                folders.add(parent.as_posix())
            yield path, {"path": path, **file.entry}
        for folder in sorted(folders):
            yield folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}

    def _tree(self, commit, folder, recursive, query):
        start = f"{folder}/" if folder else ""
        found = [
            entry
            for path, entry in sorted(self._entries(commit))
            if path.startswith(start) and (recursive or "/" not in path.removeprefix(start))
        ]
        if folder and not found:
            return self._error(404, "no such folder", "EntryNotFound")
        first = int(query.get("cursor", ["0"])[0])
        page, headers = found[first : first + PAGE], []
        if first + PAGE < len(found):
            place = urlsplit(self.path).path
            further = f"recursive={recursive}&cursor={first + PAGE}"
            headers = [("Link", f'<{self.server_of.url}{place}?{further}>; rel="next"')]
        return self._json(page, 200, *headers)

    def _resolve(self, name, revision, path, send):
        repository = self.server_of.repositories.get(name)
        if repository is None or (repository.private and not self.may_read):
            return self._error(404 if self.may_read else 401, "no", "RepoNotFound", send=send)
        commit = self._commit_of(repository, revision)
        if commit is None:
            return self._error(404, "no such revision", "RevisionNotFound", send=send)
        file = commit.files.get(path)
        if file is None:
            return self._error(404, "no such file", "EntryNotFound", send=send)
        data = file.data
        etag = hashlib.sha256(data).hexdigest() if file.is_large else git_hash(data)
        headers = [("ETag", f'"{etag}"'), ("X-Repo-Commit", commit.oid)]
        if file.is_large:
            headers += [("X-Linked-Size", str(len(data))), ("X-Linked-Etag", f'"{etag}"')]
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return self._reply(200, data, send, *headers)
        start = int(match[1])
        stop = min(int(match[2] or len(data)) + 1, len(data))
        where = ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        return self._reply(206, data[start:stop], send, where, *headers)

    def _json(self, value, status=200, *headers):
        body = json.dumps(value).encode()
        return self._reply(status, body, True, ("Content-Type", "application/json"), *headers)

    def _error(self, status, message, code=None, *, send=True):
        headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        return self._reply(status, json.dumps({"error": message}).encode(), send, *headers)
