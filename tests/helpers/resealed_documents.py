"""Documents that a stranger changed and sealed again: their checksums are right."""

import json
from pathlib import Path

from fusestore.store.manifest import canonical_json, digest_bytes
from fusestore.store.receipts import FileRecord


def content_of(file: Path):
    """The content of a manifest, without its checksum."""
    content = json.loads(file.read_bytes())
    del content["checksum"]
    return content


def sealed(content) -> bytes:
    """The bytes of a manifest with this content."""
    return canonical_json({**content, "checksum": digest_bytes(canonical_json(content))})


def reseal(file: Path, change) -> None:
    """Change the content of a manifest or receipt, and make its checksum again."""
    content = content_of(file)
    change(content)
    file.write_bytes(sealed(content))


def record(data: bytes) -> dict:
    """What a manifest says of a file with these bytes."""
    return FileRecord.of(data).model_dump()


def relist(artifact: Path, *paths: str) -> None:
    """Make the records of changed files in an artifact's manifest again."""

    def change(content):
        for path in paths:
            content["files"][path] = record((artifact / path).read_bytes())

    reseal(artifact / "manifest.json", change)
