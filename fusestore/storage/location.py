"""`Location`: a file or folder, on local disk or behind any URL, with one set of verbs.

Local paths go through `os` directly, because durability needs calls that nothing else offers (see
`publish.py`); S3 and HTTP go through obstore (see `objects.py`), every other URL through fsspec.
Clients of remote storage are imported and opened on first use, once per process, so a `Location`
can be pickled and sent to workers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fusestore.errors import InvalidInputError, NotFoundError, StorageError
from fusestore.storage import objects
from fusestore.storage.foreign_names import inside, without_links_out
from fusestore.storage.object_errors import RefusedAnswerError
from fusestore.storage.objects import ListedFile
from fusestore.storage.options import HTTP_SCHEMES, Pairs, filesystem_class, options_class
from fusestore.storage.retries import with_retries
from fusestore.storage.shown import HIDDEN, clean_cause, hidden, remember_secrets, shown

_REMOTE_FILESYSTEMS: dict[tuple[int, str, str, Pairs], Any] = {}
"""Open remote filesystems by (process id, protocol, host and the like, options).

Never shared across a fork.
"""


@dataclass(frozen=True)
class Location:
    """A file or folder. `url` has no trailing slash; a local one is an absolute path.

    Attributes:
        url: an absolute local path, or `protocol://…`. One of HTTP may end with a query, such as a
            signature, which all files below it have, too.
        storage_options: validated options of the storage, as text; empty for local paths.
        base: of a location in a store, the store's local folder: a symbolic link below it that
            leads out of it is neither read nor written. Empty for others.
    """

    url: str
    storage_options: Pairs = ()
    base: str = field(default="", compare=False)

    def __repr__(self) -> str:
        options = "".join(f", {name}={HIDDEN}" for name, _ in self.storage_options)
        return f"Location({str(self)!r}{options})"

    @classmethod
    def parse(
        cls,
        target: str | os.PathLike[str] | Location,
        storage_options: Mapping[str, object] | None = None,
    ) -> Location:
        """Make a `Location` of a path, a `file://` URL or any other URL.

        Raises:
            InvalidInputError: an empty path, one with a NUL, or an option that the URL's storage
                does not take.
        """
        if isinstance(target, Location):
            return target
        text = os.fspath(target)
        if not text:
            raise InvalidInputError("A store path or URL is empty: give a folder or a URL.")
        if "\0" in text:
            raise InvalidInputError(f"{text!r} is no path or URL: it holds a NUL.")
        if text.startswith("file://"):
            text = url2pathname(text.removeprefix("file://"))
        if "://" not in text:
            return cls(Path(text).expanduser().absolute().as_posix())
        path, query = _split_query(text)
        path = path.rstrip("/")
        protocol, _, rest = path.partition("://")
        if objects.serves(path) and "//" in rest:
            plain = re.sub("/+", "/", rest)
            raise InvalidInputError(
                f"{shown(path)} has two slashes in a row, which object storage takes for a folder "
                f"without a name. Write {shown(f'{protocol}://{plain}')}."
            )
        remember_secrets(text, (storage_options or {}).items())
        if not storage_options:
            return cls(path + query)
        return cls(path + query, options_class(text).of(storage_options, shown(text)).pairs())

    def shares_storage(self, url: str) -> bool:
        """Whether a URL is on the same storage: for HTTP the same server, else the same scheme."""
        ours, theirs = urlsplit(self.url), urlsplit(url)
        if ours.scheme != theirs.scheme:
            return False
        return ours.netloc == theirs.netloc or not url.startswith(HTTP_SCHEMES)

    def __truediv__(self, name: str) -> Location:
        path, query = _split_query(self.url)
        return replace(self, url=f"{path}/{inside(self, name)}{query}")

    def confined(self) -> Location:
        """The same location, below which no symbolic link may lead out; for folders of a store."""
        return replace(self, base=self.url if self.is_local else "")

    def __str__(self) -> str:
        """The address for people, without its secrets; see `shown`."""
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return _split_query(self.url)[0].rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder that holds this file or folder."""
        path, query = _split_query(self.url)
        base = "" if self.url == self.base else self.base
        return replace(self, url=path.rsplit("/", 1)[0] + query, base=base)

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine's filesystem."""
        return "://" not in self.url

    @property
    def is_object(self) -> bool:
        """Whether this lies behind S3 or HTTP."""
        return objects.serves(self.url)

    @property
    def path(self) -> Path:
        """The local path.

        Raises:
            InvalidInputError: for a remote location, or behind a link that leads out of `base`.
        """
        if not self.is_local:
            raise InvalidInputError(f"{self} is not a local path.")
        path = Path(self.url)
        return without_links_out(Path(self.base), path) if self.base else path

    @property
    def is_link(self) -> bool:
        """Whether this is a symbolic link of this machine, which may lead anywhere or nowhere."""
        return self.is_local and Path(self.url).is_symlink()

    @property
    def leads_out(self) -> bool:
        """Whether a symbolic link leads from here out of the store; see `base`."""
        if not self.is_local or not self.base:
            return False
        try:
            _ = self.path
        except InvalidInputError:
            return True
        return False

    @property
    def filesystem(self) -> Any:  # noqa: ANN401 - fsspec is untyped
        """The fsspec filesystem of a location behind neither S3 nor HTTP, opened on first use."""
        protocol = self.url.split("://", 1)[0]
        kind = filesystem_class(protocol)
        # Host, user and the like, for storages that are opened by them.
        of_url = kind._get_kwargs_from_urls(self.url)
        key = (os.getpid(), protocol, repr(sorted(of_url.items())), self.storage_options)
        if key not in _REMOTE_FILESYSTEMS:
            options = options_class(self.url).of(dict(self.storage_options), str(self))
            try:
                opened = kind(**{**of_url, **options.model_dump(exclude_unset=True)})
            except (TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"{self} cannot be opened: {hidden(str(error))}. Check the URL and its "
                    "--storage-option values."
                ) from clean_cause(error)
            _REMOTE_FILESYSTEMS[key] = opened
        return _REMOTE_FILESYSTEMS[key]

    @with_retries
    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        if self.is_local:
            return self.path.exists()
        if self.is_object:
            return objects.exists(self.url, self.storage_options)
        return bool(self.filesystem.exists(self.url))

    def has_file(self) -> bool:
        """Whether there is such a file: one request, where `exists` lists a folder too."""
        try:
            self.size()
        except NotFoundError:
            return False
        return True

    @with_retries
    def size(self) -> int:
        """Bytes in the file.

        Raises:
            NotFoundError: no such file.
        """
        if self.is_local:
            return self.path.stat().st_size
        if self.is_object:
            return objects.size(self.url, self.storage_options)
        return int(self.filesystem.size(self.url))

    @with_retries
    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            NotFoundError: no such file.
            AccessDeniedError: the storage refused.
            StorageError: every attempt returned fewer bytes than the file has.
        """
        if self.is_local:
            return self.path.read_bytes()
        if self.is_object:
            return objects.read_whole(self.url, self.storage_options)
        return bytes(self.filesystem.cat_file(self.url))

    @with_retries
    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of the file; fewer only if the file ends before `stop`.

        Raises:
            NotFoundError: no such file.
            StorageError: every attempt returned fewer bytes of the range than the file has.
        """
        return self._read_whole_range(start, stop)

    def _read_whole_range(self, start: int, stop: int) -> bytes:
        """`read_range` without retries."""
        data = self._read_range(start, stop)
        if len(data) != stop - start and not (self.is_local or self.is_object):
            expected = max(0, min(stop, int(self.filesystem.size(self.url))) - start)
            if len(data) != expected:
                raise StorageError(
                    f"Bytes {start:,} to {stop:,} of {self} came back as {len(data):,} "
                    f"instead of {expected:,}."
                )
        return data

    @with_retries
    def read_into(self, start: int, target: memoryview, *, whole: bool = False) -> int:
        """Read the file's bytes from `start` into memory.

        Args:
            start: the first byte.
            target: of bytes, writable; its length is the number of bytes to read.
            whole: whether `target` is as large as the file should be. The request then names no
                range, which is less work for some servers. Bytes of a larger file are ignored.

        Returns:
            The number of bytes read: less than the length of `target` only if the file ends before.

        Raises:
            NotFoundError: no such file.
            StorageError: every attempt returned fewer bytes of the range than the file has.
        """
        if self.is_object:
            return objects.read_into(self.url, self.storage_options, start, target, whole=whole)
        data = self._read_whole_range(start, start + len(target))
        target[: len(data)] = data
        return len(data)

    @with_retries
    def read_prefix(self, limit: int) -> bytes:
        """The file's first bytes, `limit` at most, in one request.

        Only for files that show by themselves whether they are whole, as manifests do.
        """
        return self._read_range(0, limit)

    @with_retries
    def download(self, target: Path) -> None:
        """Copy the file to a local one in one request; memory does not grow with its size.

        Raises:
            NotFoundError: no such file.
            AccessDeniedError: the storage refused.
            StorageError: every attempt returned fewer bytes than the file has.
        """
        if self.is_object:
            with target.open("wb") as file:
                objects.download(self.url, self.storage_options, file)
        elif self.is_local:
            shutil.copyfile(self.path, target)
        else:
            self.filesystem.get_file(self.url, str(target))

    def _read_range(self, start: int, stop: int) -> bytes:
        if self.is_local:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        if self.is_object:
            return objects.read(self.url, self.storage_options, start, stop)
        # By default, files of huggingface_hub read 5 MiB beyond the range.
        exactly = {"cache_type": "none"} if self.url.startswith("hf://") else {}
        data = bytes(self.filesystem.cat_file(self.url, start=start, end=stop, **exactly))
        if len(data) > stop - start:
            raise RefusedAnswerError(
                f"{shown(self.url)} was asked for {stop - start:,} bytes and sent {len(data):,}."
            )
        return data

    def list_recursive(self) -> list[str]:
        """Paths of all files below the folder, relative to it, sorted."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file below the folder; see `listed`."""
        return {path: file.num_bytes for path, file in self.listed().items()}

    @with_retries
    def listed(self) -> dict[str, ListedFile]:
        """Size and date of every file below the folder, by its path relative to the folder.

        One listing on object storage. Empty if there is no folder. For a file, one entry under the
        empty name.
        """
        if self.is_local:
            if self.path.is_file():
                return {"": _local_file(self.path)}
            return dict(self._local_files())
        if self.is_object:
            return objects.listed(self.url, self.storage_options)
        filesystem = self.filesystem
        root = filesystem._strip_protocol(self.url).rstrip("/")
        found = {}
        for path, entry in filesystem.find(self.url, detail=True).items():
            if path == root or path.startswith(f"{root}/"):
                # Of a file itself the Hub's filesystem lists, up to some version, nothing.
                details = entry if "size" in entry else filesystem.info(path)
                name = path.removeprefix(root).removeprefix("/")
                found[name] = ListedFile(int(details["size"]), _modified(details))
        for path in found:
            # The empty name stands for the file itself; some storages have objects for folders.
            if path:
                inside(self, path.removesuffix("/"))
        return found

    def _local_files(self) -> Iterator[tuple[str, ListedFile]]:
        root = self.path
        for folder, folders, names in os.walk(root, onerror=_raise_unless_gone):
            # Links to folders are not followed.
            for path in (Path(folder, name) for name in [*names, *folders]):
                # A writer's temporary file may be gone by now.
                with contextlib.suppress(FileNotFoundError):
                    if path.is_symlink() and replace(self, url=path.as_posix()).leads_out:
                        # As what it is: a reader is told, and `rm` removes it.
                        yield path.relative_to(root).as_posix(), _local_file(path, follow=False)
                    elif path.is_file():
                        yield path.relative_to(root).as_posix(), _local_file(path)

    @with_retries
    def _names(self) -> list[str]:
        if self.is_local:
            folder = self.path
            return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if self.is_object:
            return objects.names(self.url, self.storage_options)
        entries = self.filesystem.ls(self.url, detail=False)
        names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        return sorted(names - {self.name, ""})

    def list(self) -> list[str]:
        """Names directly inside the folder, sorted; empty if there is no folder."""
        try:
            return self._names()
        except NotFoundError:
            return []

    @with_retries
    def delete(self) -> None:
        """Remove the file or the whole folder; does nothing if it is absent."""
        if self.is_local:
            # A link is removed itself, wherever it leads.
            path = self.parent.path / self.name if self.url != self.base else self.path
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif self.is_object:
            objects.delete(self.url, self.storage_options)
        elif self.filesystem.exists(self.url):
            # Another process may have removed it in between.
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm(self.url, recursive=True)


def _local_file(path: Path, *, follow: bool = True) -> ListedFile:
    found = path.stat() if follow else path.lstat()
    return ListedFile(found.st_size, found.st_mtime)


def _modified(entry: Mapping[str, Any]) -> float | None:
    """The date of a file in a listing of fsspec: each filesystem has its own key and type."""
    for key in ("mtime", "LastModified", "last_modified", "modified", "updated", "created"):
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _raise_unless_gone(error: OSError) -> None:
    """A folder may be gone by now, as that of the leases when another writer has finished."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _split_query(url: str) -> tuple[str, str]:
    """A URL of HTTP without its query, and the query with its `?`; other addresses have none."""
    if not url.startswith(HTTP_SCHEMES):
        return url, ""
    path, mark, query = url.partition("?")
    return path, mark + query
