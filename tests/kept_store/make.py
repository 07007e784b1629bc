"""Makes the kept store: a small store of this version, and the numbers it holds.

    python -m tests.kept_store.make FOLDER

writes FOLDER/store and FOLDER/expected.json. That of the current format is committed under
tests/kept_store; another format takes its place. The numbers, of which expected.json has the
digests, are those of this version's own readers; tests compare them with what plain zarr, polars
and json read.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from transformers import LlamaForCausalLM

import fusestore as fs
from fusestore.align.report.unmatched import read_unmatched
from fusestore.align.run import align
from fusestore.align.settings import AlignSettings
from fusestore.align.stored import open_alignment
from fusestore.align.vocabulary.stored_map import load_vocabulary_map
from fusestore.cache.manifest import Only
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.corpus.tokenize import find_corpus_tokens
from fusestore.data.mapped import MappedArray
from fusestore.fuse.fits.manifest import FitManifest
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.run import fuse
from fusestore.fuse.shared import pack_fused
from fusestore.merge.manifest import MergeManifest
from fusestore.merge.run import merge_models
from fusestore.merge.settings import MergeSettings
from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.train.manifest import TrainingManifest
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.pipeline import run_pipeline
from tests.helpers import tiny_job
from tests.helpers.chat_models import chat_tokenizer, write_conversations
from tests.helpers.tiny_models import (
    make_llama,
    save_model,
    train_byte_fallback,
    train_tokenizer,
)

NUM_DOCUMENTS = 2
NUM_CHARACTERS = 90
ROWS_PER_SHARD = 96

MORE_TEXT = "Naïve café, ½ of it: 你好, мир 🙂!"
"""Characters of two to four bytes, which tokens may divide."""

CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("small", {}),
    "wide": ("wide", {}),
    "exact": ("small", {"profile": "lossless"}),
    "patchy": ("broken", {"profile": "fast", "top_k": 3, "on_nan": "skip"}),
    "nucleus": (
        "wide",
        {
            "selection": "top-p",
            "top_p": 0.6,
            "top_k": 20,
            "logprob_step": 0.25,
            "bos": "never",
        },
    ),
    "drawn": ("wide", {"selection": "sampled", "top_k": 16, "seed": 7}),
}
"""Caches by name: model, and settings beside the common ones: every profile and every selection."""

FUSED = "mince"
"""The fused dataset in the local form, as in fusion.toml."""

SHARED = "mixed"
"""The one in the shared form."""

LEARNED = "learned"
"""The one of a learned strategy, in the local form."""

SHARED_SETTINGS: dict[str, Any] = {
    "strategy": "single",
    "sources": ["drawn"],
    "unaligned": "label",
    "kinds": ["span", "mined"],
    "top_k": 16,
    "packing": "document",
}
"""Its settings beside the common ones."""

MERGED = "merged"

_FUSION = """
store = "{store}"
evaluate_split = "held_out"

[corpus]
name = "addresses"
inputs = ["{folder}/texts.jsonl"]
license = "cc0-1.0"
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
dtype = "float32"

[fuse]
name = "{fused}"
target = "small"
sources = ["small", "wide"]
top_k = 6
window_length = 64
rows_per_shard = {rows_per_shard}

[train]
learning_rate = 1e-3
max_steps = 2
precision = "float32"

[train.runs.fused]
"""


def make(folder: Path) -> None:
    """Write `store` and `expected.json` into the folder, which must not hold a store."""
    with tempfile.TemporaryDirectory() as work:
        job = Path(work)
        _write_job(job)
        _write_store(job, folder / "store")
        numbers = read_with_fusestore(Store.open(folder / "store"), job / "unpacked")
    expected = {name: digest_of(values) for name, values in sorted(numbers.items())}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def digest_of(values: npt.NDArray[Any]) -> str:
    """dtype, shape and a SHA-256; equal for arrays whose numbers are equal, NaN with NaN."""
    if values.dtype.kind == "U":
        data = "\n".join(map(str, values)).encode()
    elif values.dtype.kind == "f":
        # One NaN and one zero.
        data = (np.where(np.isnan(values), np.nan, values) + 0.0).astype(values.dtype).tobytes()
    else:
        data = values.tobytes()
    return (
        f"{values.dtype.kind}{values.dtype.itemsize} {list(values.shape)} "
        + sha256(data).hexdigest()
    )


def _write_job(folder: Path) -> None:
    """Texts, and tiny models with tokenizers of two families."""
    texts = [text[:NUM_CHARACTERS] for text in tiny_job.paragraphs()[:NUM_DOCUMENTS]]
    texts.insert(1, MORE_TEXT)
    splits = ["train"] * NUM_DOCUMENTS + ["held_out"]
    pl.DataFrame({"text": texts, "split": splits}).write_ndjson(folder / "texts.jsonl")
    byte_level = train_tokenizer(texts, 280)
    save_model(folder / "small", _llama(len(byte_level), seed=1), byte_level)
    sentencepiece = train_byte_fallback(texts[:1], tiny_job.VOCABULARY_SIZE)
    save_model(folder / "wide", _llama(len(sentencepiece) + 5, seed=2), sentencepiece)
    # The license of one of the models is known.
    (folder / "wide/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    broken = _llama(len(byte_level), seed=3, tied=False)
    # It gives NaN for what is in one of the documents only.
    broken.get_input_embeddings().weight.data[byte_level.encode("½")] = float("nan")
    save_model(folder / "broken", broken, byte_level)


def _llama(vocab_size: int, seed: int, *, tied: bool = True) -> LlamaForCausalLM:
    """A random model of a few thousand numbers, some of whose tokens are likelier than others."""
    return make_llama(
        vocab_size,
        seed=seed,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        initializer_range=0.8,
        tie_word_embeddings=tied,
    )


def _write_store(job: Path, folder: Path) -> None:
    file = job / "fusion.toml"
    file.write_text(
        _FUSION.format(store=folder, folder=job, fused=FUSED, rows_per_shard=ROWS_PER_SHARD)
    )
    config = load_config(Location.parse(file))
    run_pipeline(config)
    store = Store.open(folder)
    corpus = fs.open_corpus(store, "addresses")
    common = config.models["small"].capture.model_dump()
    for name, (model, changes) in CACHES.items():
        settings = CaptureSettings(**{**common, **changes})
        capture(store, name, Model.open(job / model), corpus, settings)
    align(store, "drawn", "small", AlignSettings(method="mined", vocabulary="statistical"))
    methods = {"alignment_method": "mined", "vocabulary_method": "statistical"}
    common = config.fuse[FUSED].model_dump(exclude={"sources", "target_cache"})
    fuse(store, "local", Recipe.parse({**common, **SHARED_SETTINGS, **methods}))
    pack_fused(store.fused("local"), store.fused(SHARED))
    store.fused("local").delete()
    fuse(store, LEARNED, Recipe.parse({**common, "sources": ["small", "wide"], "strategy": "em"}))
    _write_chat(job, store)
    merge_models(
        store,
        MERGED,
        [str(job / "small"), str(folder / "models/fused")],
        MergeSettings(weights=(1.0, 3.0)),
        evaluate=(corpus.name, "held_out"),
        precision="float32",
    )


def _write_chat(job: Path, store: Store) -> None:
    """Conversations, read by two models by their own templates, and what they say fused."""
    file = write_conversations(job / "chats.jsonl", 1)
    names = ("chatml", "instructions")
    for name in names:
        tokenizer = chat_tokenizer(name, pieces=name == "instructions")
        save_model(job / name, _llama(len(tokenizer), seed=4), tokenizer)
    models = [Model.open(job / name) for name in names]
    corpus = build_corpus(
        store, "chats", [str(file)], CorpusSettings(max_length=128), tokenizers=models
    ).artifact
    settings = CaptureSettings(top_k=4, device="cpu", dtype="float32", rows_per_chunk=32)
    settings = settings.model_copy(update={"rows_per_shard": ROWS_PER_SHARD})
    only: dict[str, Only] = {"chatml": "all", "instructions": "supervised"}
    for name, model in zip(names, models, strict=True):
        changed = settings.model_copy(update={"only": only[name]})
        capture(store, name, model, corpus, changed)
    align(store, names[1], names[0])
    recipe = {"sources": names, "target": names[0], "top_k": 4, "packing": "stream"}
    fuse(store, "answers", Recipe.parse(recipe))


def _arrays(table: TokenTable) -> dict[str, npt.NDArray[Any]]:
    names = ("token_ids", "end_offsets", "document_offsets")
    return {name: getattr(table, name) for name in names}


def read_with_fusestore(store: Store, unpacked: Path) -> dict[str, npt.NDArray[Any]]:
    """Every number of the store by a path-like name, as this version's readers give it.

    Args:
        store: the store.
        unpacked: a folder for the local form of what is there in the shared form.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name in store.names("corpora"):
        corpus = fs.open_corpus(store, name)
        table = corpus.table()
        found |= {f"corpora/{name}/{key}": table[key].to_numpy() for key in ("document", "segment")}
        for key in ("text", "split", "source", "digest"):
            found[f"corpora/{name}/{key}"] = np.array(table[key].to_list())
        for folder in (corpus.location / "tokens").list():
            tokens = find_corpus_tokens(corpus, folder.partition("-")[0])
            (stored,) = (t for t in tokens if t.location.name == folder)
            prefix = f"corpora/{name}/tokens/{folder}"
            found |= {f"{prefix}/{key}": value for key, value in _arrays(stored.table()).items()}
    for name in store.names("caches"):
        cache = fs.open_cache(store, name)
        rows, read = cache[:], cache.tokens
        found |= {f"caches/{name}/{key}": value for key, value in vars(rows).items()}
        found |= {f"caches/{name}/{key}": value for key, value in _arrays(read).items()}
    for name in store.names("vocabulary_maps"):
        mapped = load_vocabulary_map(store.location / "vocabulary_maps" / name)
        for key in ("target_id", "distance", "kind"):
            found[f"vocabulary_maps/{name}/{key}"] = getattr(mapped, key)
    for name in store.names("alignments"):
        alignment = open_alignment(store.alignment(name))
        documents = alignment.manifest.fingerprint.num_documents
        position, kind = alignment.for_documents(0, documents)
        unmatched = read_unmatched(alignment)
        found |= {
            f"alignments/{name}/source_pos": position,
            f"alignments/{name}/kind": kind,
            f"alignments/{name}/document_offsets": alignment.document_offsets,
            f"alignments/{name}/unmatched": unmatched.select("token_id", "unmatched").to_numpy(),
        }
    for name in store.names("fits"):
        fit = FitManifest.load(store.location / "fits" / name / "manifest.json")
        for key in ("temperatures", "spreads", "weights"):
            found[f"fits/{name}/{key}"] = np.array(getattr(fit, key))
    for name in store.names("fused"):
        dataset = fs.open_fused(store.location, name, cache_dir=unpacked)
        for array in fused_arrays(dataset.num_tokens, dataset.top_k, dataset.num_tokens):
            values = MappedArray(dataset.folder / array.name).read(0, dataset.num_tokens)
            found[f"fused/{name}/{array.name}"] = values
        if (dataset.folder / "window_starts").exists():
            starts = MappedArray(dataset.folder / "window_starts")
            found[f"fused/{name}/window_starts"] = starts.read(0, len(starts))
    for name in store.names("models"):
        file = store.model(name) / "manifest.json"
        if name == MERGED:
            merged = MergeManifest.load(file).evaluation
            points = [merged.metrics] if merged else []
        else:
            points = [point.metrics for point in TrainingManifest.load(file).evaluations]
        bits = np.array([point["bits_per_byte"] for point in points])
        found[f"models/{name}/bits_per_byte"] = bits
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
