"""Files of installed Python packages: `package:NAME` and `package:NAME/path`.

Models and texts can come as packages, pinned and checked like any other dependency. A package is
never imported, so none of its code runs. Packages that `fusestore.storage.fetched_package` has
fetched for their files alone lie in the user's cache folder and are found there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusestore.errors import NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.private_folder import private_folder
from fusestore.storage.publish import publish_chunks, remove_abandoned_in
from fusestore.storage.retries import storage_errors

SCHEME = "package:"


def user_cache_folder() -> Path:
    """Folder of converted models and fetched datasets: `$FUSESTORE_HOME` or ~/.cache/fusestore.

    Raises:
        InvalidInputError: it is not private; see `private_folder`.
    """
    home = os.environ.get("FUSESTORE_HOME")
    folder = Path(home).expanduser() if home else Path.home() / ".cache" / "fusestore"
    # Whoever writes to a folder that cannot be made reports it.
    with contextlib.suppress(OSError):
        private_folder(folder)
    return folder


def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The absolute folder for fetched datasets: `cache_dir`, or by default the user's cache.

    Raises:
        InvalidInputError: it is not private; see `private_folder`.
        AccessDeniedError, StorageError: it cannot be made.
    """
    if cache_dir is None:
        return user_cache_folder().absolute()
    folder = Path(cache_dir).expanduser().absolute()
    with storage_errors(Location.parse(folder)):
        return private_folder(folder, sticky=True)


def fetched_packages_folder() -> Path:
    """Folder of packages that were fetched for their files: one folder each, `NAME-VERSION`.

    Raises:
        InvalidInputError: the cache folder is not private; see `private_folder`.
    """
    return user_cache_folder() / "packages"


def is_installed(name: str) -> bool:
    """Whether a package is installed, or was fetched for its files."""
    try:
        _distribution(name)
    except NotFoundError:
        return False
    return True


def resolve_path(spec: str) -> str:
    """The local path (or glob) behind `package:NAME/path`; other text is returned unchanged.

    Raises:
        NotFoundError: no such package is installed.
    """
    if not spec.startswith(SCHEME):
        return spec
    name, _, rest = spec.removeprefix(SCHEME).partition("/")
    distribution = _distribution(name)
    top_level = name.replace("-", "_")
    for file in distribution.files or ():
        if file.parts[0] == top_level:
            return str(Path(str(distribution.locate_file(top_level))) / rest)
    raise NotFoundError(f"Package {name} is installed but has no folder {top_level}.")


def packaged_gguf(name: str) -> Path:
    """The GGUF file of an installed package, joined once if it comes in parts.

    Parts are files `*.gguf.partNN` of the package itself and of the packages it requires.

    Raises:
        NotFoundError: no such package, or it holds no GGUF file.
    """
    distribution = _distribution(name)
    whole = _files(distribution, r"\.gguf$")
    if whole:
        return whole[0]
    parts = _files(distribution, r"\.gguf\.part\d+$")
    for requirement in distribution.requires or ():
        required = re.match(r"[\w.-]+", requirement)
        if required and ";" not in requirement:
            parts += _files(_distribution(required.group()), r"\.gguf\.part\d+$")
    if not parts:
        raise NotFoundError(f"Package {name} holds no GGUF file.")
    parts.sort(key=lambda path: path.name)
    folder = user_cache_folder() / "gguf" / f"{name}-{distribution.version}"
    target = folder / parts[0].name.rsplit(".part", 1)[0]
    if not target.exists():
        remove_abandoned_in(folder)
        publish_chunks(Location.parse(target), _chunks(parts))
    return target


def package_metadata(name: str) -> importlib.metadata.PackageMetadata:
    """The metadata of an installed package, such as its license.

    Raises:
        NotFoundError: no such package is installed.
    """
    return _distribution(name).metadata


def _chunks(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(2**24):
                yield chunk


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        folders = [str(path) for path in sorted(fetched_packages_folder().glob("[!.]*"))]
        for found in importlib.metadata.distributions(name=name, path=folders):
            return found
        raise NotFoundError(
            f"Package {name} is not installed. Install it with `pip install {name}`, or with "
            "`--no-deps` if it is wanted for its files alone. The demo's packages come with "
            "`pip install 'fusestore[demo]'` and `fusestore demo`."
        ) from error


def _files(distribution: importlib.metadata.Distribution, pattern: str) -> list[Path]:
    return [
        Path(str(distribution.locate_file(file)))
        for file in distribution.files or ()
        if re.search(pattern, file.name)
    ]
