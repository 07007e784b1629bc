"""Projection and MinCE against a plain Python and torch collator, on one core; growth with tokens.

Both sides fuse the same decoded rows: three sources with k = 32, one with the target's tokenizer
and two with larger vocabularies, nine positions in ten aligned. The collator does, position by
position, what FuseLLM's does: translate each source's entries into target tokens, write them into
a dense distribution, score every source on the labels, keep the best one's (section 3 of arXiv
2401.10491), and here cut it to its 32 largest entries again. Times are processor time; the two
sides run in turns.

    OMP_NUM_THREADS=1 python benchmarks/fusion.py

Figures of the last run stand in docs/fusion.md.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rows import Rows
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.storage.location import Location
from fusestore.tokenizers.token_table import TokenTable

K = 32
TARGET_VOCABULARY = 49_152
SOURCE_VOCABULARIES = (TARGET_VOCABULARY, 128_256, 262_144)
DOCUMENT = 512
SHARD = 65_536
ROUNDS = 5
GROWTH = (1_000_000, 3_000_000, 10_000_000, 30_000_000)


def main() -> None:
    fusion = make_fusion(4 * SHARD)
    fuse_rows(fusion, 0, SHARD)
    ours, theirs = [], []
    for turn in range(ROUNDS):
        began = time.process_time()
        fuse_rows(fusion, turn % 4 * SHARD, (turn % 4 + 1) * SHARD)
        ours.append(SHARD / (time.process_time() - began))
        began = time.process_time()
        collate_document(fusion, turn)
        theirs.append(DOCUMENT / (time.process_time() - began))
    fast, plain = statistics.median(ours), statistics.median(theirs)
    print(f"projection and MinCE, 3 sources, k = {K}: {fast:,.0f} target tokens/s")
    print(f"plain collator:                          {plain:,.0f} target tokens/s")
    print(f"ratio:                                   {fast / plain:,.0f}")

    small = fusion_of(4 * SHARD)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        materialize(FusedFolder(Location.parse(f"{folder}/fused"), small))
        rate = small.num_tokens / (time.perf_counter() - began)
    print(f"written to disk as well:                 {rate:,.0f} target tokens/s")

    first = None
    for num_tokens in GROWTH:
        fusion = make_fusion(num_tokens)
        times = [time.process_time()]
        for start in range(0, fusion.num_tokens, SHARD):
            fuse_rows(fusion, start, min(start + SHARD, fusion.num_tokens))
            times.append(time.process_time())
        per_million = (times[-1] - times[0]) / fusion.num_tokens * 1e6
        median = statistics.median(np.diff(times)[:-1]) / SHARD * 1e6
        first = first or per_million
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{num_tokens:>11,} tokens: {per_million:.3f} s a million "
            f"({per_million / first:.2f} of the first; median of its shards {median:.3f}), "
            f"peak memory {peak:,.0f} MiB"
        )


def make_fusion(num_tokens: int) -> Fusion:
    """Three synthetic sources over documents of 512 tokens; memory for one shard of rows."""
    return fusion_of(-(-num_tokens // DOCUMENT) * DOCUMENT)


def fusion_of(num_tokens: int) -> Fusion:
    rng = np.random.default_rng(0)
    num_documents = num_tokens // DOCUMENT
    offsets = np.arange(num_documents + 1) * DOCUMENT
    target = Tiled.make(rng, TARGET_VOCABULARY, offsets)
    sources = []
    for index, vocab_size in enumerate(SOURCE_VOCABULARIES):
        name = f"source{index}"
        if index == 0:
            sources.append(SourceInput(name, target, name, "corpus"))
            continue
        mapped = rng.integers(0, TARGET_VOCABULARY, vocab_size).astype(np.int32)
        mapped[rng.random(vocab_size) < 0.05] = -1
        sources.append(
            SourceInput(
                name,
                Tiled.make(rng, vocab_size, offsets),
                name,
                "corpus",
                mapped,
                TiledAlignment.make(rng),
            )
        )
    return prepare(
        Recipe.parse(
            {
                "corpus": "synthetic",
                "split": "train",
                "target": "0" * 64,
                "top_k": K,
                "rows_per_shard": SHARD,
                "sources": [{"cache": source.name} for source in sources],
            }
        ),
        sources,
        target_tokens=target,
        tokens_digest="synthetic",
        documents=np.arange(num_documents),
        vocab_size=TARGET_VOCABULARY,
        corpus_digest="corpus",
    )


@dataclass(frozen=True)
class Tiled:
    """A decoded cache that repeats one shard of rows for ever."""

    block: TokenTable
    rows: Rows
    document_offsets: npt.NDArray[np.int64]
    skipped: frozenset[int] = frozenset()

    @classmethod
    def make(
        cls, rng: np.random.Generator, vocab_size: int, offsets: npt.NDArray[np.int64]
    ) -> Tiled:
        """Rows of distinct ids, as top-k gives them, with most of the mass on few entries."""
        stride = vocab_size // K
        ids = rng.integers(0, stride, (SHARD, K)) + stride * np.arange(K)
        ids = rng.permuted(ids, axis=1).astype(np.int32)
        mass = np.sort(rng.dirichlet(np.full(K + 1, 0.3), SHARD), axis=1)[:, ::-1]
        with np.errstate(divide="ignore"):
            logprobs = np.log(mass).astype(np.float32)
        label = -rng.exponential(2.0, SHARD).astype(np.float32)
        label[DOCUMENT - 1 :: DOCUMENT] = np.nan
        ends = np.tile((np.arange(DOCUMENT) + 1) * 4, SHARD // DOCUMENT).astype(np.int32)
        tokens = rng.integers(0, vocab_size, SHARD).astype(np.int32)
        block = TokenTable(tokens, ends, np.arange(0, SHARD + 1, DOCUMENT))
        rows = Rows(ids, np.ascontiguousarray(logprobs[:, :K]), logprobs[:, K].copy(), label)
        return cls(block, rows, offsets)

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of tokens `[start, stop)`, which lie in one shard."""
        first = start % SHARD
        return self.block.read_tokens(first, first + stop - start)

    def __getitem__(self, rows: slice) -> Rows:
        here = slice(rows.start % SHARD, rows.start % SHARD + rows.stop - rows.start)
        block = self.rows
        return Rows(
            block.ids[here], block.logprobs[here], block.tail[here], block.label_logprob[here]
        )


@dataclass(frozen=True)
class TiledAlignment:
    """Nine positions in ten are paired with the source's row of the same number."""

    position: npt.NDArray[np.int32]

    @classmethod
    def make(cls, rng: np.random.Generator) -> TiledAlignment:
        """For one shard."""
        position = np.tile(np.arange(DOCUMENT, dtype=np.int32), SHARD // DOCUMENT)
        position[rng.random(SHARD) < 0.1] = -1
        return cls(position)

    def for_documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Positions and kinds of documents `[start, stop)`, which lie in one shard."""
        first = start * DOCUMENT % SHARD
        position = self.position[first : first + (stop - start) * DOCUMENT]
        return position, (position >= 0).astype(np.uint8)


def collate_document(fusion: Fusion, document: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One document's fused ids and probabilities, as a straightforward collator makes them."""
    tokens = torch.from_numpy(fusion.read(document, document + 1).token_ids)
    labels = tokens[1:].long()
    best, lowest = torch.zeros(0), float("inf")
    for source, target_id in zip(fusion.sources, fusion.maps, strict=True):
        start = document * DOCUMENT
        rows = source.cache[start : start + DOCUMENT]
        translate = {index: int(token) for index, token in enumerate(target_id) if token >= 0}
        pairs = range(DOCUMENT)
        if source.alignment is not None:
            pairs = source.alignment.for_documents(document, document + 1)[0].tolist()
        dense = torch.zeros(DOCUMENT, fusion.vocab_size)
        for position, row in enumerate(pairs):
            if row < 0:
                continue
            masses: dict[int, float] = {}
            for token, logprob in zip(
                rows.ids[row].tolist(), rows.logprobs[row].tolist(), strict=True
            ):
                mapped = translate.get(token)
                if mapped is not None:
                    masses[mapped] = masses.get(mapped, 0.0) + float(np.exp(logprob))
            dense[position, list(masses)] = torch.tensor(list(masses.values()))
        chosen = dense[torch.arange(DOCUMENT - 1), labels]
        score = float(-torch.log(chosen.clamp_min(1e-9)).mean())
        if score < lowest:
            best, lowest = dense, score
    probabilities, ids = best.topk(K, dim=1)
    return ids, probabilities


if __name__ == "__main__":
    main()
