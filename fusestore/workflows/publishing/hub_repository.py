"""A repository of the Hub to publish to, through huggingface_hub's own client.

Files go up in commits of bounded size, and a commit is visible whole or not at all. What the
repository has is not sent again: the listing tells the SHA-256 of large files and the Git hash of
small ones, and the client asks before it uploads a large file that no commit names yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fusestore.errors import (
    AccessDeniedError,
    CorruptionError,
    FusestoreError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fusestore.storage.location import Location
from fusestore.storage.replace import scratch_folder
from fusestore.store.copy import copy_file
from fusestore.store.receipts import FileRecord

FILES_PER_COMMIT = 256
BYTES_PER_COMMIT = 4 * 2**30

_URL = re.compile(
    r"hf://(?P<type>datasets/|models/)?(?P<id>(?!(datasets|models|spaces|buckets)/)[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>[^/\s]+))?/?",
    re.ASCII,
)
_DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its SHA-256 if it is large, else the hash that Git gives it."""

    num_bytes: int
    sha256: str | None
    git_hash: str

    def holds(self, data: bytes) -> bool:
        """Whether it has these bytes."""
        if self.sha256 is not None:
            return self.sha256 == hashlib.sha256(data).hexdigest()
        return self.git_hash == git_hash(data)


@dataclass(frozen=True)
class Addition:
    """A file to add: its bytes, or where it is and the checksum that it must have."""

    path: str
    data: bytes | None = None
    source: Location | None = None
    record: FileRecord | None = None

    @property
    def num_bytes(self) -> int:
        """Its size."""
        if self.record is not None:
            return self.record.num_bytes
        return len(self.data or b"")


class HubRepository:
    """A dataset or model repository, at one revision.

    Attributes:
        url: `hf://…` without a slash at the end.
        repo_id: `OWNER/NAME`.
        repo_type: dataset or model.
        revision: branch.
    """

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        """Understand the URL; nothing is requested.

        Args:
            url: `hf://datasets/OWNER/NAME` or `hf://OWNER/NAME`, and perhaps `@BRANCH`.
            options: of its storage: `token` and `endpoint`.

        Raises:
            InvalidInputError: the URL has another form.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise InvalidInputError(
                f"{url} is no repository to publish to: write hf://datasets/OWNER/NAME for a "
                "dataset, hf://OWNER/NAME for a model, and @BRANCH behind it for a branch (a slash "
                "in its name as %2F)."
            )
        self.url = url.rstrip("/")
        self.repo_id: str = match["id"]
        self.repo_type = "dataset" if match["type"] == "datasets/" else "model"
        self.revision = unquote(match["revision"] or _DEFAULT_REVISION)
        self._options = options
        self._parent: str | None = None
        """The commit that was looked at, on which the next one is made."""

    @property
    def api(self) -> Any:  # noqa: ANN401 - its types are the client's
        """The client, with the token of the options, or else of the user's login."""
        from huggingface_hub import HfApi

        endpoint, token = self._options.get("endpoint"), self._options.get("token")
        return HfApi(
            endpoint=None if endpoint is None else str(endpoint),
            token=None if token is None else str(token),
            library_name="fusestore",
        )

    def create(self, *, private: bool) -> None:
        """Make the repository, and the branch, unless they exist.

        Raises:
            AccessDeniedError: there is no token, or it may not write there.
            StorageError: the Hub failed or cannot be reached.
        """
        with hub_errors(self.url):
            # A token that may write to this repository alone can make none.
            if self._head() is None:
                self.api.create_repo(
                    self.repo_id,
                    repo_type=self.repo_type,
                    private=private or None,
                    exist_ok=True,
                )
            if self.revision != _DEFAULT_REVISION:
                self.api.create_branch(
                    self.repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True
                )
            if self._parent is None:
                self._parent = self._head()

    def _head(self) -> str | None:
        """The commit that the branch is at; None if there is no such repository or branch."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = self.api.repo_info(
                self.repo_id, repo_type=self.repo_type, revision=self.revision
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response is not None and error.response.status_code == _UNAUTHORIZED:
                # Without a token, the Hub hides whether there is such a repository.
                raise
            return None
        return str(info.sha)

    def files(self) -> dict[str, RemoteFile]:
        """All files by path; empty if there is no such repository or branch.

        The next commit is made on what was seen here, or refused.

        Raises:
            AccessDeniedError, StorageError: as `create`.
        """
        self._forget()
        with hub_errors(self.url):
            self._parent = self._head()
            if self._parent is None:
                return {}
            entries = self.api.list_repo_tree(
                self.repo_id, recursive=True, revision=self.revision, repo_type=self.repo_type
            )
            return {
                entry.path: RemoteFile(
                    int(entry.size), entry.lfs.sha256 if entry.lfs else None, str(entry.blob_id)
                )
                for entry in entries
                if hasattr(entry, "size")
            }

    def location(self, path: str = "") -> Location:
        """A file or folder of the repository, to read."""
        kind = "datasets/" if self.repo_type == "dataset" else ""
        at = "" if self.revision == _DEFAULT_REVISION else f"@{quote(self.revision, safe='')}"
        url = f"hf://{kind}{self.repo_id}{at}"
        return Location.parse(f"{url}/{path}" if path else url, dict(self._options))

    def add(
        self,
        additions: Sequence[Addition],
        last: Sequence[Addition],
        *,
        message: str,
        jobs: int,
        added: Callable[[int], None],
    ) -> str | None:
        """Add files in commits, the last of which has all of `last`.

        Args:
            additions: in an order in which a later file may tell that earlier ones are whole.
            last: what becomes visible when everything else is there.
            message: of the commits.
            jobs: files that are fetched at the same time.
            added: receives the bytes of each commit.

        Returns:
            The last commit; None if there was nothing to add.

        Raises:
            CorruptionError: a file of the source does not have its checksum. The commits before
                stay, and `last` is not added.
            AccessDeniedError, StorageError: as `create`. The same call continues.
        """
        commit = None
        batches = list(_batches(additions))
        rest = batches.pop() if batches and len(batches[-1]) + len(last) <= FILES_PER_COMMIT else []
        try:
            for batch in [*batches, [*rest, *last]]:
                if batch:
                    commit = self._commit(batch, message, jobs)
                    added(sum(each.num_bytes for each in batch))
        finally:
            self._forget()
        return commit

    def _forget(self) -> None:
        """Have the filesystem of `hf://` look anew: it remembers what it listed before."""
        with contextlib.suppress(FusestoreError):
            self.location().filesystem.invalidate_cache()

    def _commit(self, batch: Sequence[Addition], message: str, jobs: int) -> str:
        from huggingface_hub import CommitOperationAdd

        with scratch_folder("publish") as folder:
            content = _local(batch, folder, jobs)
            with hub_errors(self.url):
                operations = [
                    CommitOperationAdd(each.path, each.data if each.data is not None else file)
                    for each, file in zip(batch, content, strict=True)
                ]
                _check(batch, operations)
                # The repository's list of ignored files, in place of this one, may drop some.
                self.api.preupload_lfs_files(
                    self.repo_id,
                    operations,
                    repo_type=self.repo_type,
                    revision=self.revision,
                    gitignore_content="",
                    free_memory=False,
                )
                made = self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=self.repo_type,
                    revision=self.revision,
                    parent_commit=self._parent,
                )
                self._parent = str(made.oid)
        return str(made.oid)


_UNAUTHORIZED = 401
_FORBIDDEN = 403
_CHANGED = 412


def git_hash(data: bytes) -> str:
    """The SHA-1 by which Git names a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _batches(additions: Sequence[Addition]) -> Iterator[list[Addition]]:
    batch: list[Addition] = []
    for each in additions:
        size = sum(other.num_bytes for other in batch)
        if batch and (len(batch) == FILES_PER_COMMIT or size + each.num_bytes > BYTES_PER_COMMIT):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _local(batch: Sequence[Addition], folder: Path, jobs: int) -> list[str]:
    """The files of a batch on this machine, copied and checked if they are elsewhere."""

    def local(number: int, each: Addition) -> str:
        if each.source is None or each.record is None:
            return ""
        if each.source.is_local:
            return str(each.source.path)
        target = folder / str(number)
        copy_file(each.source, Location.parse(target), each.record)
        return str(target)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(local, range(len(batch)), batch))


def _check(batch: Sequence[Addition], operations: Sequence[Any]) -> None:
    """Check the files of this machine before any is sent.

    Raises:
        CorruptionError: one does not have its checksum.
    """
    for each, operation in zip(batch, operations, strict=True):
        if each.record is None:
            continue
        actual = (operation.upload_info.size, operation.upload_info.sha256.hex())
        if actual != (each.record.num_bytes, each.record.sha256):
            raise CorruptionError(
                f"{each.source} is damaged: its SHA-256 should be {each.record.sha256[:16]}…, it "
                f"is {actual[1][:16]}…. It was not published. Run `fusestore verify` on its store."
            )


@contextlib.contextmanager
def hub_errors(url: str) -> Iterator[None]:
    """Turn errors of huggingface_hub's client into ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except FusestoreError:
        raise
    except LocalTokenNotFoundError as error:
        raise _denied(url, "there is no token") from error
    except HFValidationError as error:
        raise InvalidInputError(f"{url} cannot be the name of a repository: {error}") from error
    except FileNotFoundError as error:
        raise CorruptionError(
            f"A file to publish disappeared: {error}. Run `fusestore verify` on its store."
        ) from error
    except HfHubHTTPError as error:
        raise _http_error(url, error) from error
    except ValueError as error:
        raise InvalidInputError(
            f"The Hub does not take what would be published to {url}: {error} Correct the head of "
            "the card there."
        ) from error
    except Exception as error:
        # An upload in a thread reports its error as the cause of a RuntimeError.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _http_error(url, error.__cause__) from error
        if _is_of_a_client(error) or (error.__cause__ and _is_of_a_client(error.__cause__)):
            raise StorageError(
                f"{url} could not be reached: {error.__cause__ or error}. What was published "
                "stays; run the same command again to continue."
            ) from error
        raise


def _is_of_a_client(error: BaseException) -> bool:
    """Whether the network or an HTTP client failed; importing the clients would cost time."""
    package = type(error).__module__.split(".", 1)[0]
    return isinstance(error, OSError) or package in ("httpx", "httpx2", "httpcore", "hf_xet")


def _http_error(url: str, error: Any) -> FusestoreError:  # noqa: ANN401 - of the client
    status = getattr(error.response, "status_code", None)
    reason = str(getattr(error, "server_message", None) or f"status {status}")
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return _denied(url, reason)
    if status == _CHANGED:
        return StorageError(
            f"{url} was changed by another process meanwhile. Run the same command again, which "
            "continues from what is there."
        )
    if status is not None and status // 100 == 4 and status not in (408, 409, 429):
        return NotFoundError(
            f"{url} did not accept what was published ({reason}). Check that the repository "
            "exists, and its name."
        )
    return StorageError(
        f"{url} could not be written: the Hub answered with {reason}. What was published stays; "
        "run the same command again to continue."
    )


def _denied(url: str, reason: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"Access to {url} was denied ({reason}). Log in with `hf auth login`, or set HF_TOKEN to a "
        "token that may write to this repository."
    )
