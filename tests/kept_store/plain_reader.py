"""A reader of stores in zarr, polars, json and NumPy alone, as docs/store.md and format.md say.

Nothing of fusestore is imported, and each step is one that the documents name. It is written to be
followed, not to be fast: everything is read whole. `read_store` gives every number of a store by
its path; `check_names` sees that artifacts name each other by the digests that docs/store.md lists.
`plain_cache` has the caches, `plain_alignment` what joins two tokenizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.kept_store.plain_alignment import (
    ALIGNMENT_KINDS,
    check_inside,
    counts,
    read_alignment,
    read_vocabulary_map,
)
from tests.kept_store.plain_cache import (
    Numbers,
    check_all_listed,
    check_files,
    check_fingerprint,
    check_raw_files,
    open_arrays,
    read_document,
    read_receipt,
    read_rows,
    sha256,
)

FUSED_KINDS = [*ALIGNMENT_KINDS, "label", "target", "fusellm"]


def read_store(store: Path) -> Numbers:
    """Every complete artifact of the store."""
    readers = {
        "corpora": read_corpus,
        "caches": read_cache,
        "vocabulary_maps": read_vocabulary_map,
        "alignments": read_alignment,
        "fits": read_fit,
        "fused": read_fused,
        "models": read_model,
    }
    numbers: Numbers = {}
    for kind, read in readers.items():
        for artifact in complete(store / kind):
            found = read(artifact)
            numbers |= {f"{kind}/{artifact.name}/{name}": values for name, values in found.items()}
    check_names(store)
    return numbers


def complete(folder: Path) -> Iterator[Path]:
    """The folders below that have a manifest, by name."""
    for artifact in sorted(folder.iterdir()):
        if (artifact / "manifest.json").exists():
            yield artifact


def joint_digest(*arrays: tuple[np.ndarray, str]) -> str:
    """SHA-256 over the digests, as bytes, of arrays in given dtypes."""
    digests = [hashlib.sha256(values.astype(dtype).tobytes()).digest() for values, dtype in arrays]
    return sha256(b"".join(digests))


def read_corpus(folder: Path) -> Numbers:
    """The documents, and their tokens in every tokenizer."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = check_fingerprint(folder, manifest["fingerprint"])
    read_receipt(folder, "documents", fingerprint["digest"])
    table = pl.read_parquet(folder / "documents.parquet")
    state = hashlib.sha256()
    columns = ["source", "segment", "split", "text"]
    columns += ["conversation"] * (fingerprint["chat"] is not None)
    for row in table.select(columns).iter_rows():
        for value in row:
            data = str(value).encode()
            state.update(len(data).to_bytes(8, "little") + data)
    assert state.hexdigest() == manifest["documents_digest"]
    for text, length, digest in table.select("text", "byte_length", "digest").iter_rows():
        assert len(text.encode()) == length
        assert sha256(text.encode()) == digest
    columns = ("document", "segment", "text", "split", "source", "digest")
    numbers = {name: np.array(table[name].to_list(), _text_or_int(table[name])) for name in columns}
    for tokens in complete(folder / "tokens"):
        found = read_tokens(tokens, manifest["digest"], table["byte_length"].to_numpy())
        numbers |= {f"tokens/{tokens.name}/{name}": values for name, values in found.items()}
    return numbers


def _text_or_int(column: pl.Series) -> Any:
    return None if column.dtype == pl.String else str(column.dtype).lower()


def read_tokens(folder: Path, corpus_digest: str, byte_lengths: np.ndarray) -> Numbers:
    """The tokens of a corpus in one tokenizer."""
    manifest = read_document(folder / "manifest.json")
    assert manifest["corpus_digest"] == corpus_digest
    suffix = "-bos" if manifest["add_bos"] else ""
    if manifest["template"]:
        suffix = f"-{manifest['template']['digest'][:16]}"
    assert folder.name == manifest["tokenizer_digest"][:16] + suffix
    check_all_listed(folder, manifest)
    numbers = {name: array[:] for name, array in open_arrays(folder).items()}
    ids, ends = numbers["token_ids"], numbers["end_offsets"]
    offsets = numbers["document_offsets"]
    digest = joint_digest((ids, "<i4"), (ends, "<i4"), (offsets, "<i8"))
    assert digest == manifest["arrays_digest"]
    assert len(ids) == len(ends) == manifest["num_tokens"] == offsets[-1]
    assert len(offsets) - 1 == manifest["num_documents"] == len(byte_lengths)
    assert np.all(_within(np.diff(ends), offsets) >= 0)
    assert np.all(ends <= np.repeat(byte_lengths, np.diff(offsets)))
    assert not manifest["add_bos"] or not ends[offsets[:-1]].any()
    return numbers


def _within(differences: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Those of T − 1 differences that do not reach from one document into the next."""
    return np.delete(differences, np.unique(offsets[1:-1]) - 1)


def read_vocabulary(store: Path, tokenizer_digest: str) -> pl.DataFrame:
    """The bytes that each token id stands for."""
    folder = store / f"vocabularies/{tokenizer_digest[:16]}"
    manifest = read_document(folder / "manifest.json")
    check_fingerprint(folder, manifest["fingerprint"])
    assert manifest["fingerprint"]["tokenizer_digest"] == tokenizer_digest
    check_all_listed(folder, manifest)
    file = folder / "vocabulary.parquet"
    assert pl.read_parquet_metadata(file)["tokenizer_digest"] == tokenizer_digest
    table = pl.read_parquet(file)
    assert np.array_equal(table["token_id"].to_numpy(), np.arange(manifest["num_tokens"]))
    return table


def read_cache(folder: Path) -> Numbers:
    """The rows and tokens of a distribution cache, and that its vocabulary is there."""
    numbers = read_rows(folder)
    fingerprint = read_document(folder / "fingerprint.json")
    vocabulary = read_vocabulary(folder.parent.parent, fingerprint["tokenizer_digest"])
    assert len(vocabulary) == fingerprint["tokenizer_length"]
    assert (numbers["token_ids"] < len(vocabulary)).all()
    return numbers


def read_fit(folder: Path) -> Numbers:
    """The numbers of a learned strategy, whose folder is named by the manifest's digest."""
    manifest = read_document(folder / "manifest.json")
    check_files(folder, manifest["files"])
    check_fingerprint(folder, manifest["fingerprint"])
    assert manifest["digest"].startswith(folder.name)
    return {name: np.array(manifest[name]) for name in ("temperatures", "spreads", "weights")}


def read_fused(folder: Path) -> Numbers:
    """The arrays of a fused dataset in either form; the local form by its raw bytes too."""
    manifest = read_document(folder / "manifest.json")
    plan = check_fingerprint(folder, manifest["plan"])
    assert plan["digest"] == manifest["plan_digest"]
    check_all_listed(folder, manifest)
    numbers = {name: array[:] for name, array in open_arrays(folder).items()}
    numbers.pop("window_starts", None)
    rows, per_file = plan["num_tokens"], min(plan["recipe"]["rows_per_shard"], plan["num_tokens"])
    for name, values in numbers.items():
        assert len(values) == rows
        if manifest["form"] == "local":
            check_raw_files(folder, name, values, per_file)
    if manifest["form"] == "shared":
        numbers["kind"] = numbers["kind"].astype("u1")
        _check_shared(folder, manifest, list(numbers), -(-per_file // 2048) * 2048)
    else:
        for shard in range(-(-rows // per_file)):
            receipt = read_receipt(folder, f"{shard:06d}", plan["digest"])
            kind = numbers["kind"][receipt["start"] : receipt["stop"]]
            assert list(counts(kind, FUSED_KINDS).values()) == receipt["content"]["kinds"]
    assert counts(numbers["kind"], FUSED_KINDS) == manifest["kinds"]
    _check_fused_rows(numbers)
    if plan["recipe"]["packing"] != "stream":
        local = folder / "local" if manifest["form"] == "shared" else folder
        starts = open_arrays(local)["window_starts"][:]
        _check_windows(starts, numbers["document"], plan["recipe"])
        assert len(starts) == manifest["num_windows"] + 1
        numbers["window_starts"] = starts
    else:
        assert manifest["num_windows"] == -(-rows // plan["recipe"]["window_length"])
    return numbers


def _check_fused_rows(numbers: Numbers) -> None:
    """What docs/store.md says of every row."""
    logprobs, kind, document = (numbers[name] for name in ("logprobs", "kind", "document"))
    unused = np.isneginf(logprobs)
    assert not numbers["ids"][unused].any()
    assert np.all(logprobs[:, 1:] <= logprobs[:, :-1])
    assert unused[kind == 0].all()
    assert not numbers["tail"][kind == 0].any()
    known = numbers["known"]
    assert np.all((known >= 0) & (known < 1 + 1e-6))
    assert not known[kind == 0].any()
    assert np.allclose(known[kind == FUSED_KINDS.index("span")], 1)
    assert np.all(known[kind >= FUSED_KINDS.index("label")] == 1)
    assert not unused[kind > 0].all(axis=1).any()
    last = np.append(np.diff(document) > 0, True)
    following = np.append(numbers["input_ids"][1:], -100)
    trained_on = numbers["next_ids"] != -101
    assert np.array_equal(
        numbers["next_ids"][trained_on], np.where(last, -100, following)[trained_on]
    )
    assert not kind[~trained_on].any()


def _check_windows(starts: np.ndarray, document: np.ndarray, recipe: Mapping[str, Any]) -> None:
    """Windows follow each other; none is too long, and each is as the packing says."""
    assert starts[0] == 0
    assert starts[-1] == len(document)
    for start, stop in pairwise(starts):
        assert 0 < stop - start <= recipe["window_length"]
        if recipe["packing"] == "whole":
            assert start == 0 or document[start - 1] != document[start]
        else:
            assert len(set(document[start:stop].tolist())) == 1


def _check_shared(
    folder: Path, manifest: Mapping[str, Any], arrays: list[str], per_shard: int
) -> None:
    """The receipts of the shared form; below local/ lies what the local form has beside values."""
    for shard in range(-(-manifest["num_tokens"] // per_shard)):
        receipt = read_receipt(folder, f"{shard:06d}", manifest["plan_digest"])
        assert receipt["start"] == shard * per_shard
    local = read_document(folder / "local/manifest.json")
    same = ("plan", "plan_digest", "recipe_digest", "kinds", "sources", "num_tokens")
    assert {key: local[key] for key in same} == {key: manifest[key] for key in same}
    assert local["form"] == "local"
    kept = {
        path: record
        for path, record in local["files"].items()
        if not path.startswith(tuple(f"{name}/c/" for name in arrays))
        and path != "fingerprint.json"
    }
    check_files(folder / "local", kept)
    below = {path for path in manifest["files"] if path.startswith("local/")}
    assert below == {f"local/{path}" for path in (*kept, "manifest.json")}


def read_model(folder: Path) -> Numbers:
    """The evaluations of a trained or merged model; its tensors are for safetensors to read."""
    manifest = read_document(folder / "manifest.json")
    check_all_listed(folder, manifest)
    check_fingerprint(folder, manifest["merge" if "merge" in manifest else "plan"])
    if "merge" in manifest:
        points = [manifest["evaluation"]] if manifest["evaluation"] else []
    else:
        points = manifest["evaluations"]
    return {"bits_per_byte": np.array([point["metrics"]["bits_per_byte"] for point in points])}


def model_digest(folder: Path) -> str:
    """What other manifests call a model."""
    state = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
            state.update(file.name.encode() + b"\0" + bytes.fromhex(sha256(file.read_bytes())))
    return state.hexdigest()


def check_names(store: Path) -> None:
    """Artifacts name what they were made from by the digests that docs/store.md lists."""
    corpora = _named(store, "corpora", "digest")
    caches = _named(store, "caches", "content_digest")
    maps = _named(store, "vocabulary_maps", "content_digest")
    alignments = _named(store, "alignments", "digest")
    fused = _named(store, "fused", "plan_digest")
    tokens = {
        read_document(folder / "manifest.json")["arrays_digest"]: folder
        for corpus in corpora.values()
        for folder in complete(corpus["folder"] / "tokens")
    }
    for manifest in caches.values():
        assert manifest["fingerprint"]["corpus"]["digest"] in corpora
    for manifest in maps.values():
        assert manifest["fingerprint"]["corpus_digest"] in {None, *corpora}
    for manifest in alignments.values():
        fingerprint = manifest["fingerprint"]
        corpus = corpora[fingerprint["corpus_digest"]]["folder"]
        cache = caches[fingerprint["source_cache_digest"]]["folder"]
        assert fingerprint["vocabulary_map_digest"] in {None, *maps}
        assert fingerprint["source_tokens_digest"] == _tokens_digest(cache)
        of_corpus = {_tokens_digest(folder): folder for folder in complete(corpus / "tokens")}
        targets = open_arrays(of_corpus[fingerprint["target_tokens_digest"]])
        read_vocabulary(store, fingerprint["target_tokenizer_digest"])
        spelled = read_vocabulary(store, fingerprint["source_tokenizer_digest"])
        check_inside(open_arrays(manifest["folder"]), open_arrays(cache), targets, spelled)
    for manifest in fused.values():
        plan = manifest["plan"]
        documents = pl.read_parquet(corpora[plan["corpus_digest"]]["folder"] / "documents.parquet")
        split = documents.filter(pl.col("split") == plan["recipe"]["split"])["document"]
        assert len(split) == plan["num_documents"]
        assert sha256(split.to_numpy().astype("<i8").tobytes()) == plan["documents_digest"]
        assert tokens[plan["tokens_digest"]].name.startswith(plan["recipe"]["target"][:16])
        for source in plan["inputs"]:
            assert source["cache_digest"] in caches
            assert source["vocabulary_map_digest"] in {None, *maps}
            assert source["alignment_digest"] in {None, *alignments}
        assert plan["target_cache_digest"] in {None, *caches}
        next_ids = open_arrays(manifest["folder"])["next_ids"][:]
        masked = _masked(documents, split.to_list(), open_arrays(tokens[plan["tokens_digest"]]))
        assert np.array_equal(next_ids == -101, masked)
    for manifest in _named(store, "models", "digest").values():
        assert "merge" in manifest or manifest["plan"]["dataset_digest"] in fused


def _masked(documents: pl.DataFrame, split: list[int], tokens: dict[str, Any]) -> np.ndarray:
    """The positions of a split whose next token is not trained on: it ends in no such turn."""
    ends, offsets = tokens["end_offsets"][:], tokens["document_offsets"][:]
    masked = []
    for document in split:
        turns = documents["turns"][document]
        of_document = ends[offsets[document] : offsets[document + 1]]
        for end in of_document[1:]:
            chosen = turns is None or any(
                turn["start"] < end <= turn["stop"] + 1 for turn in turns if turn["trained_on"]
            )
            masked.append(not chosen)
        masked += [False] * (len(of_document) > 0)
    return np.array(masked, bool)


def _tokens_digest(folder: Path) -> str:
    """What an alignment calls the tokens in a cache's or corpus's folder."""
    group = open_arrays(folder)
    names = {"document_offsets": "<i8", "token_ids": "<i4", "end_offsets": "<i4"}
    return joint_digest(*((group[name][:], dtype) for name, dtype in names.items()))


def _named(store: Path, kind: str, key: str) -> dict[str, dict[str, Any]]:
    """The manifests of one kind by what other documents call them."""
    found = {}
    for folder in complete(store / kind):
        manifest = read_document(folder / "manifest.json")
        found[manifest[key]] = {**manifest, "folder": folder}
    return found
