"""Makes the kept store: a small store of this version, and the numbers it holds.

    python -m tests.kept_store.make FOLDER

writes FOLDER/store and FOLDER/expected.npz. The folder of each format version is committed under
tests/kept_store and read by every later version; a new version makes a new folder beside the old
ones. The numbers are those of this version's own readers; tests compare them with what plain
zarr, polars and json read.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fusestore as fs
from fusestore.align.map_tables import load_vocabulary_map
from fusestore.align.tables import open_alignment
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.config import load_config
from fusestore.corpus.tokenizers import load_tokenizer
from fusestore.data.mapped import MappedArray
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.run import fuse_caches
from fusestore.pipeline import run_pipeline
from fusestore.storage.store import Store
from fusestore.storage.urls import Location
from tests.pipeline import tiny_job
from tests.tiny_models import save_model, train_tokenizer

NUM_DOCUMENTS = 3
NUM_CHARACTERS = 150
ROWS_PER_SHARD = 128

MORE_TEXT = "Naïve café, ½ of it: 你好, мир 🙂!"
"""Characters of two to four bytes, which tokens may divide."""

CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("small", {}),
    "wide": ("wide", {}),
    "exact": ("small", {"logprob_step": 0, "top_k": 12}),
    "coarse": ("wide", {"logprob_step": 0.25, "top_k": 3, "bos": "never"}),
}
"""Caches by name: model, and settings beside the common ones. Every way to store rows is here."""

FUSED: dict[str, dict[str, Any]] = {
    "mince": {},
    "mixed": {"strategy": "uniform", "unaligned": "label", "kinds": ("span", "mined"), "top_k": 4},
}
"""Fused datasets by name, and settings beside the common ones."""

_FUSION = """
store = "{store}"
evaluate_split = "held_out"

[corpus]
name = "addresses"
inputs = ["{folder}/texts.jsonl"]
split_column = "split"
max_length = 64

[models]
small = {{ model = "{folder}/small" }}
wide = {{ model = "{folder}/wide" }}

[capture]
top_k = 8
rows_per_shard = {rows_per_shard}
rows_per_chunk = 32
device = "cpu"

[fuse]
name = "mince"
target = "small"
sources = ["small", "wide"]
top_k = 6
window_length = 64
rows_per_shard = {rows_per_shard}

[train]
learning_rate = 1e-3
max_steps = 2
precision = "no"

[train.runs.fused]
"""


def make(folder: Path) -> None:
    """Write `store` and `expected.npz` into the folder, which must not hold a store."""
    with tempfile.TemporaryDirectory() as work:
        _write_job(Path(work))
        _write_store(Path(work), folder / "store")
    numbers = read_with_fusestore(Store.open(folder / "store"))
    np.savez_compressed(folder / "expected.npz", **numbers)


def _write_job(folder: Path) -> None:
    """Texts, and two tiny models with tokenizers of two families."""
    texts = [text[:NUM_CHARACTERS] for text in tiny_job.paragraphs()[:NUM_DOCUMENTS]]
    texts.insert(1, MORE_TEXT)
    splits = ["train"] * NUM_DOCUMENTS + ["held_out"]
    pl.DataFrame({"text": texts, "split": splits}).write_ndjson(folder / "texts.jsonl")
    byte_level = train_tokenizer(texts, 280)
    save_model(folder / "small", _llama(len(byte_level), seed=1), byte_level)
    sentencepiece = tiny_job.train_tokenizer(texts)
    save_model(folder / "wide", _llama(len(sentencepiece) + 5, seed=2), sentencepiece)


def _llama(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """A random model of a few thousand numbers, some of whose tokens are likelier than others."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=128,
        initializer_range=0.8,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def _write_store(job: Path, folder: Path) -> None:
    file = job / "fusion.toml"
    file.write_text(_FUSION.format(store=folder, folder=job, rows_per_shard=ROWS_PER_SHARD))
    config = load_config(Location.parse(file))
    run_pipeline(config)
    store = Store.open(folder)
    corpus = fs.open_corpus(store, "addresses")
    for name, (model, changes) in CACHES.items():
        common = config.models[model].capture.model_dump()
        capture(store, corpus, str(job / model), name, CaptureSettings(**{**common, **changes}))
    target = load_tokenizer(str(job / "small"))
    for name, changes in FUSED.items():
        fuse_caches(
            store, config.fuse.model_copy(update={"name": name, **changes}), target, "addresses"
        )


def read_with_fusestore(store: Store) -> dict[str, npt.NDArray[Any]]:
    """Every number of the store by a path-like name, as this version's readers give it."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name in store.names("corpora"):
        corpus = fs.open_corpus(store, name)
        table = corpus.table()
        found |= {f"corpora/{name}/{key}": table[key].to_numpy() for key in ("document", "segment")}
        for key in ("text", "split", "source", "digest"):
            found[f"corpora/{name}/{key}"] = np.array(table[key].to_list())
    for name in store.names("caches"):
        cache = fs.open_cache(store, name)
        rows, tokens = cache[:], cache.tokens
        found |= {f"caches/{name}/{key}": value for key, value in vars(rows).items()}
        found |= {f"caches/{name}/{key}": value for key, value in vars(tokens).items()}
    for name in store.names("vocabulary_maps"):
        mapped = load_vocabulary_map(store.location / "vocabulary_maps" / name)
        for key in ("target_id", "distance", "kind"):
            found[f"vocabulary_maps/{name}/{key}"] = getattr(mapped, key)
    for name in store.names("alignments"):
        alignment = open_alignment(store.alignment(name))
        documents = alignment.manifest.fingerprint.num_documents
        position, kind = alignment.for_documents(0, documents)
        found |= {f"alignments/{name}/source_pos": position, f"alignments/{name}/kind": kind}
    for name in store.names("fused"):
        dataset = fs.open_fused(store.location, name)
        for array in fused_arrays(dataset.num_tokens, dataset.top_k, dataset.num_tokens):
            values = MappedArray(dataset.folder / array.name).read(0, dataset.num_tokens)
            found[f"fused/{name}/{array.name}"] = values
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FUSESTORE_HOME"] = home
        make(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {len(sizes)} files, {sum(sizes):,} bytes")
