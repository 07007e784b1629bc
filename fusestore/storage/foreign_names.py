"""Names from listings, manifests and other foreign documents: which of them may become a path.

A store may come from a stranger, who writes `../../.bashrc` where a file's name belongs. So a
`Location` takes only names that stay inside it (`inside`), and what a document lists must also be a
path on every system, and no second name of a file that it lists already (`listed_inside`).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fusestore.errors import InvalidInputError

_NOT_ON_WINDOWS = re.compile(
    r"""(?ix) .* [\x00-\x1f<>:"|?*\\/] .* | .* [.\s] | (con|prn|aux|nul|(com|lpt)\d) (\..*)?""",
    re.DOTALL,
)
"""Characters and endings that a file name of Windows cannot have, and names of its devices."""


def is_portable(name: str) -> bool:
    """Whether every system can hold a file of this name: stores are copied between them."""
    return bool(name) and _NOT_ON_WINDOWS.fullmatch(name) is None


def inside(folder: object, relative: str) -> str:
    """The relative path, if it stays inside the folder.

    Args:
        folder: for the message.
        relative: parts divided by `/`.

    Raises:
        InvalidInputError: it is empty, absolute, has a part `.`, `..` or nothing, or a NUL.
    """
    if "\0" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise InvalidInputError(
            f"{relative!r} is no path inside {folder}: expected names divided by single slashes, "
            "none of them '.' or '..'. If a store holds this name, do not trust the store."
        )
    return relative


def listed_inside(folder: object, paths: Iterable[str]) -> None:
    """Check paths that a manifest or a receipt lists.

    Args:
        folder: for messages.
        paths: relative to the folder.

    Raises:
        InvalidInputError: a path leads out of the folder on some system or cannot be there, or two
            are one file where names differ by more than case and Unicode form.
    """
    spelled: dict[str, str] = {}
    whole: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        if not all(map(is_portable, parts)):
            raise InvalidInputError(
                f"{folder} lists a file {path!r}, which is no path inside its folder on every "
                "system. Do not trust this store."
            )
        other = whole.setdefault(_one_file(path), path)
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if spelled.setdefault(_one_file(above), above) != above:
                other = spelled[_one_file(above)]
        if other != path:
            raise InvalidInputError(
                f"{folder} lists {other!r} and {path!r}, which are one file or folder on systems "
                "that ignore case or the form of Unicode. Do not trust this store."
            )
    if both := whole.keys() & spelled.keys():
        path = whole[min(both)]
        raise InvalidInputError(
            f"{folder} lists {path!r} as a file and as a folder. Do not trust this store."
        )


def _one_file(path: str) -> str:
    """The same for all spellings that some filesystem takes for one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def without_links_out(base: Path, path: Path) -> Path:
    """The path, if no symbolic link leads from it out of the base folder.

    The base itself may be reached through links: it is the folder that a person named.

    Raises:
        InvalidInputError: a link leads out.
    """
    if path == base or not _has_link(base, path):
        return path
    real = os.path.realpath(base)
    target = os.path.realpath(path)
    if target != real and not target.startswith(f"{real.rstrip(os.sep)}{os.sep}"):
        raise InvalidInputError(
            f"{path} leads out of {base} by a symbolic link, to {target}, so it is neither read "
            "nor written. Copy what it stands for to its place, or remove the link; a store may be "
            "a link itself, but holds none that leads out of it."
        )
    return path


def _has_link(base: Path, path: Path) -> bool:
    try:
        relative = path.relative_to(base)
    except ValueError:
        return True
    current = str(base)
    return any(
        os.path.islink(current := os.path.join(current, part))  # noqa: PTH114, PTH118 - many calls
        for part in relative.parts
    )
