"""Mutations of JSON documents that are guided by what they make the readers do, with atheris.

    pip install atheris
    python -m tests.attacks.fuzz_documents SECONDS [SEED]

`fuzz.py` puts hostile values into the right places; this finds places of its own, byte by byte. A
document that is JSON gets its checksum again, so that it reaches its class. What is no error of
ours ends the run, and is printed with its bytes.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "fusestore.store.foreign_json",
        "fusestore.store.manifest",
        "fusestore.store.receipts",
        "fusestore.store.stored_size",
        "fusestore.storage.foreign_names",
        "fusestore.fuse.manifest",
        "fusestore.cache.manifest",
        "fusestore.corpus.manifest",
        "fusestore.align.manifest",
    ]
):
    from fusestore.align.manifest import AlignmentManifest
    from fusestore.cache.manifest import CacheManifest
    from fusestore.corpus.manifest import CorpusManifest
    from fusestore.errors import FusestoreError
    from fusestore.fuse.manifest import FusedManifest
    from fusestore.store.foreign_json import parse_foreign_json
    from fusestore.store.manifest import MAX_MANIFEST_BYTES

from fusestore.train.manifest import TrainingManifest
from tests.attacks.fuzz import KEPT
from tests.helpers.resealed import sealed

CLASSES = (CacheManifest, CorpusManifest, AlignmentManifest, FusedManifest, TrainingManifest)


def read(data: bytes) -> None:
    """Read a document as every kind of manifest; the first byte says whether it is sealed again."""
    seal, data = data[:1] < b"\xf0", data[1:]
    try:
        content = parse_foreign_json(data, "document", MAX_MANIFEST_BYTES)
    except FusestoreError:
        return
    if seal and isinstance(content, dict):
        try:
            data = sealed(content)[0]
        except (TypeError, ValueError):
            return
    for each in CLASSES:
        try:
            each.from_bytes(data, "document")
        except FusestoreError:
            continue


def main() -> None:
    """Mutate the documents of the kept store for some seconds."""
    seconds, seed = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1"
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(sorted(KEPT.glob("*/*/manifest.json"))):
            Path(folder, str(number)).write_bytes(b"{" + file.read_bytes())
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=65536", "-timeout=20"]
        atheris.Setup([sys.argv[0], *options, folder], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
