"""Folders of this machine whose files are believed, because nobody but their user can write them.

Fetched shards, converted models and remembered digests are checked when they are made, and then
taken as they are. Whoever can write to their folder can exchange them, or put a link in the place
of a file that is about to be written. So such a folder is created for its user alone, and one of
somebody else is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from fusestore.errors import InvalidInputError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path, *, link: bool = True, sticky: bool = False) -> Path:
    """Create a folder for its user alone, or check that an existing one is.

    Args:
        folder: an absolute path.
        link: whether it may be a symbolic link: a person named it.
        sticky: whether others may write to it if it is sticky, as /tmp is: for a folder that holds
            private folders and nothing else.

    Raises:
        InvalidInputError: it belongs to another user, or others may write to it.
        OSError: it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder, link=link, sticky=sticky)
    return folder


def check_private(folder: Path, *, link: bool = True, sticky: bool = False) -> None:
    """Check that a folder is private; one that does not exist yet is.

    Private is a folder of this user, or of root, to which nobody else may write. A group with the
    number of its user counts as the user's own, as many systems make one for each user.

    Raises:
        InvalidInputError: it is not.
    """
    if not hasattr(os, "geteuid"):
        return
    try:
        found = folder.stat() if link else folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        problem = "it is a symbolic link"
    elif found.st_uid not in (os.geteuid(), 0):
        problem = f"it belongs to user {found.st_uid}, and this process is of {os.geteuid()}"
    elif sticky and found.st_mode & stat.S_ISVTX:
        return
    elif found.st_mode & _OTHERS_WRITE and not _only_own_group(found):
        problem = f"others may write to it (its mode is {stat.S_IMODE(found.st_mode):o})"
    else:
        return
    raise InvalidInputError(
        f"{folder} cannot keep files that are believed without another check: {problem}. Use a "
        "folder of your own (cache_dir, or the variable FUSESTORE_HOME), or make it private with "
        f"`chmod go-w {folder}`."
    )


def _only_own_group(found: os.stat_result) -> bool:
    return not found.st_mode & stat.S_IWOTH and found.st_uid == found.st_gid == os.getegid()


def open_for_lock(path: Path) -> int:
    """Open a file for reading and writing, created if it is missing; never through a link.

    Returns:
        Its descriptor.

    Raises:
        InvalidInputError: the path is a link, or no file of this user alone.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        # Another process may rename or remove it in between.
        with contextlib.suppress(FileNotFoundError):
            return _existing(path, flags)
    return os.open(path, flags | os.O_CREAT, 0o600)


def _existing(path: Path, flags: int) -> int:
    found = path.lstat()
    own = not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or not own:
        raise InvalidInputError(
            f"{path} is a link, or no file of this user alone, and was not written. Remove it; "
            "nobody else should be able to write to its folder."
        )
    return os.open(path, flags)
