"""Files of a store on disk, and the artifacts they belong to."""

import re
from pathlib import Path

from fusestore.store.registry import kinds


def artifact_of(store: Path, path: Path) -> str:
    """How commands call the artifact that a file belongs to."""
    folder, name = path.relative_to(store).parts[:2]
    (kind,) = (kind.name for kind in kinds() if kind.folder == folder)
    return f"{kind}/{name}"


def one_of_each(store: Path) -> dict[str, Path]:
    """One file of each kind: paths that differ in numbers or digests only are of one kind."""
    found: dict[str, Path] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            name = path.relative_to(store).as_posix()
            found.setdefault(re.sub(r"[0-9a-f]{16}|\d+", "#", name), path)
    return found
