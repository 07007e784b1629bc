"""Documents that a stranger changed and sealed again: their checksums are right."""

from pathlib import Path

from fusestore.store.receipts import FileRecord
from tests.helpers import resealed


def content_of(file: Path):
    """The content of a manifest, without its checksum."""
    content = resealed.read_json(file)
    del content["checksum"]
    return content


def sealed(content) -> bytes:
    """The bytes of a manifest with this content."""
    return resealed.sealed(content)[0]


def reseal(file: Path, change) -> None:
    """Change the content of a manifest or receipt, and make its checksum again."""
    content = content_of(file)
    change(content)
    resealed.write_json(file, content)


def record(data: bytes) -> dict:
    """What a manifest says of a file with these bytes."""
    return FileRecord.of(data).model_dump()


def relist(artifact: Path, *paths: str) -> None:
    """Make the records of changed files in an artifact's manifest again."""

    def change(content):
        for path in paths:
            content["files"][path] = record((artifact / path).read_bytes())

    reseal(artifact / "manifest.json", change)
