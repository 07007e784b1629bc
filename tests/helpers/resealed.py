"""Changes to a store with every checksum made again, as somebody with bad intentions makes them."""

import hashlib
import json

import numpy as np

from fusestore.align.manifest import AlignmentFingerprint
from fusestore.cache.layout import cache_arrays
from fusestore.cache.manifest import Fingerprint
from fusestore.corpus.tokenize import token_arrays
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import encode_shard
from fusestore.store.manifest import canonical_json, digest_bytes

KINDS = {
    "corpora": "corpus",
    "vocabularies": "vocabulary",
    "caches": "cache",
    "vocabulary_maps": "map",
    "alignments": "alignment",
    "fits": "fit",
    "fused": "fused",
    "models": "model",
}
"""Kinds by their folders."""


def artifact_folders(store):
    """The folders of all artifacts of a store."""
    return [folder for name in KINDS for folder in sorted((store / name).iterdir())]


def path_of(folder):
    return f"{KINDS[folder.parent.name]}/{folder.name}"


def read_json(file):
    return json.loads(file.read_bytes())


def sealed(content):
    """The bytes of a document with its checksum; the digest, too."""
    plain = {key: value for key, value in content.items() if key != "checksum"}
    digest = digest_bytes(canonical_json(plain))
    return canonical_json({**plain, "checksum": digest}), digest


def write_json(file, content):
    """Write a document with its checksum made again; returns the digest."""
    data, digest = sealed(content)
    file.write_bytes(data)
    return digest


def change(file, **changes):
    """Change keys of a document; `a__b` is the key b of the value of a."""
    content = read_json(file)
    for path, value in changes.items():
        *above, last = path.split("__")
        inside = content
        for key in above:
            inside = inside[key]
        inside[last] = value
    write_json(file, content)


def reseal(folder):
    """Make every checksum of an artifact's folder again, from its files and its manifest."""
    manifest_file = folder / "manifest.json"
    manifest = read_json(manifest_file)
    begun = next((key for key in ("fingerprint", "plan", "merge") if key in manifest), None)
    digest = None
    if begun is not None and (folder / "fingerprint.json").exists():
        digest = write_json(folder / "fingerprint.json", manifest[begun])
        for key in ("fingerprint_digest", "plan_digest"):
            if key in manifest:
                manifest[key] = digest
    receipts = sorted(folder.glob("receipts/*.json"))
    checksums = [_reseal_document(file, folder, digest) for file in receipts]
    if "content_digest" in manifest and folder.parent.name == "caches":
        # The tokens part comes first, then the shards.
        ordered = [checksums[-1], *checksums[:-1]]
        lines = "".join(f"{each}\n" for each in ordered)
        manifest["content_digest"] = digest_bytes(lines.encode())
    _update_files(manifest, folder)
    checksum = write_json(manifest_file, manifest)
    for file in folder.glob("tokens/*/manifest.json"):
        tokens = read_json(file)
        tokens["corpus_digest"] = checksum
        _update_files(tokens, file.parent)
        tokens["arrays_digest"] = _arrays_digest(file.parent, tokens)
        write_json(file, tokens)


def _reseal_document(file, folder, digest):
    content = read_json(file)
    if digest is not None and folder.parent.name != "corpora":
        content["fingerprint_digest"] = digest
    if digest is not None and folder.parent.name == "corpora":
        content["fingerprint_digest"] = digest
    _update_files(content, folder)
    return write_json(file, content)


def _update_files(content, folder):
    files = content.get("files")
    for path in files if isinstance(files, dict) else ():
        if (folder / path).is_file():
            data = (folder / path).read_bytes()
            files[path] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _arrays_digest(folder, manifest):
    states = []
    for spec in token_arrays(manifest["num_tokens"], manifest["num_documents"]):
        values = ArrayReader(Location.parse(folder), spec).read(0, spec.shape[0])
        states.append(hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest())
    return digest_bytes(b"".join(states))


def arrays_of(folder):
    """The specs of an artifact's arrays by name, and the folder they lie in."""
    if folder.parent.parent.name == "tokens" or folder.parent.name == "tokens":
        manifest = read_json(folder / "manifest.json")
        specs = token_arrays(manifest["num_tokens"], manifest["num_documents"])
    elif folder.parent.name == "caches":
        content = read_json(folder / "manifest.json")["fingerprint"]
        arrays = cache_arrays(Fingerprint.model_validate(content, context={"stored": True}))
        specs = (*arrays.per_shard, *arrays.fixed)
    elif folder.parent.name == "alignments":
        content = read_json(folder / "manifest.json")["fingerprint"]
        specs = AlignmentFingerprint.model_validate(content, context={"stored": True}).arrays
    elif folder.parent.name == "fused":
        manifest = read_json(folder / "manifest.json")
        recipe = manifest["plan"]["recipe"]
        make = shared_arrays if manifest["form"] == "shared" else fused_arrays
        specs = make(manifest["num_tokens"], recipe["top_k"], recipe["rows_per_shard"])
    else:
        specs = ()
    return {spec.name: spec for spec in specs}


def change_array(folder, name, edit):
    """Change the values of an array in place by `edit(values)`, with checksums of its chunks."""
    spec = arrays_of(folder)[name]
    values = ArrayReader(Location.parse(folder), spec).read(0, spec.shape[0]).copy()
    edit(values)
    for shard in range(spec.num_files):
        start, stop = spec.rows_of(shard)
        (folder / spec.file_name(shard)).write_bytes(encode_shard(spec, shard, values[start:stop]))


def change_raw(folder, name, edit):
    """`change_array`, and all checksums of the artifact."""
    change_array(folder, name, edit)
    reseal(folder)
