"""Projection, labels and MinCE against a plain Python and torch collator, on one core; growth.

Both sides fuse the same decoded rows: three sources with k = 32, one with the target's tokenizer
and two with larger vocabularies, in which one token in 31 covers two of the target's, so that one
position in 32 is `inside`. The same is timed for an even mixture of all three. The collator does,
position by position, what FuseLLM's does: translate each source's entries into target tokens, write
them into a dense distribution, score every source on the labels, keep the best one's (section 3 of
arXiv 2401.10491), and here cut it to its 32 largest entries again. Times are processor time; the
two sides run in turns.

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

from fusestore.align.kinds import INSIDE, NONE, SPAN
from fusestore.cache.rows import Rows
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.storage.location import Location
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import Spelling

K = 32
TARGET_VOCABULARY = 49_152
SOURCE_VOCABULARIES = (TARGET_VOCABULARY, 128_256, 262_144)
DOCUMENT = 512
WIDTH = 4
"""Bytes of a target token."""
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
    mixture = make_fusion(4 * SHARD, strategy="uniform")
    fuse_rows(mixture, 0, SHARD)
    mixed = []
    for turn in range(ROUNDS):
        began = time.process_time()
        fuse_rows(mixture, turn % 4 * SHARD, (turn % 4 + 1) * SHARD)
        mixed.append(SHARD / (time.process_time() - began))
    print(f"MinCE of 3 sources, k = {K}, with labels: {fast:,.0f} target tokens/s")
    print(f"an even mixture of the 3, with labels:   {statistics.median(mixed):,.0f}")
    print(f"plain collator, MinCE:                   {plain:,.0f} target tokens/s")
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


def make_fusion(num_tokens: int, strategy: str = "mince") -> Fusion:
    """Three synthetic sources over documents of 512 tokens; memory for one shard of rows."""
    return fusion_of(-(-num_tokens // DOCUMENT) * DOCUMENT, strategy)


def fusion_of(num_tokens: int, strategy: str = "mince") -> Fusion:
    rng = np.random.default_rng(0)
    num_documents = num_tokens // DOCUMENT
    target = Tiled.make(rng, TARGET_VOCABULARY, num_documents, np.full(DOCUMENT, WIDTH))
    lengths = np.tile([*[WIDTH] * 30, 2 * WIDTH], DOCUMENT // 32)
    sources = []
    for index, vocab_size in enumerate(SOURCE_VOCABULARIES):
        name = f"source{index}"
        if index == 0:
            sources.append(SourceInput(name, target, name, "corpus"))
            continue
        mapped = rng.integers(0, TARGET_VOCABULARY, vocab_size).astype(np.int32)
        mapped[rng.random(vocab_size) < 0.05] = -1
        made = Tiled.make(rng, vocab_size, num_documents, lengths)
        spelling = spell(rng, vocab_size)
        remainders = rng.integers(0, TARGET_VOCABULARY, len(spelling.data)).astype(np.int32)
        sources.append(
            SourceInput(
                name,
                made,
                name,
                "corpus",
                mapped,
                TiledAlignment.make(made.block, target.block),
                spelling=spelling,
                first_tokens=remainders,
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
                "strategy": strategy,
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


def spell(rng: np.random.Generator, vocab_size: int) -> Spelling:
    """The first half of the ids spells `WIDTH` bytes, the second twice as many.

    Of 64 beginnings, so that some entries of each row agree with the bytes of a condition.
    """
    beginnings = rng.integers(97, 123, (64, WIDTH)).astype(np.uint8)
    texts = beginnings[rng.integers(0, 64, (vocab_size, 2))]
    lengths = np.where(np.arange(vocab_size) < vocab_size // 2, WIDTH, 2 * WIDTH)
    used = np.arange(2 * WIDTH) < lengths[:, None]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Spelling(texts.reshape(vocab_size, -1)[used], offsets)


@dataclass(frozen=True)
class Tiled:
    """A decoded cache that repeats the rows of one shard of the target's for ever."""

    block: TokenTable
    rows: Rows
    document_offsets: npt.NDArray[np.int64]
    skipped: frozenset[int] = frozenset()

    @classmethod
    def make(
        cls,
        rng: np.random.Generator,
        vocab_size: int,
        num_documents: int,
        lengths: npt.NDArray[np.int64],
    ) -> Tiled:
        """Rows of distinct ids, as top-k gives them, with most of the mass on few entries.

        `lengths`: bytes of each token of a document; long tokens are of the vocabulary's second
        half.
        """
        offsets = np.arange(num_documents + 1) * len(lengths)
        tiles = SHARD // DOCUMENT
        size = tiles * len(lengths)
        stride = vocab_size // K
        ids = rng.integers(0, stride, (size, K)) + stride * np.arange(K)
        ids = rng.permuted(ids, axis=1).astype(np.int32)
        mass = np.sort(rng.dirichlet(np.full(K + 1, 0.3), size), axis=1)[:, ::-1]
        with np.errstate(divide="ignore"):
            logprobs = np.log(mass).astype(np.float32)
        # As many nats a byte for every source, so that each wins a third of the documents.
        label = -rng.exponential(2.0 * DOCUMENT / len(lengths), size).astype(np.float32)
        label[len(lengths) - 1 :: len(lengths)] = np.nan
        ends = np.tile(np.cumsum(lengths), tiles).astype(np.int32)
        half = vocab_size // 2
        tokens = rng.integers(0, half, size) + half * (np.tile(lengths, tiles) > WIDTH)
        block = TokenTable(
            tokens.astype(np.int32), ends, np.arange(tiles + 1, dtype=np.int64) * len(lengths)
        )
        rows = Rows(ids, np.ascontiguousarray(logprobs[:, :K]), logprobs[:, K].copy(), label)
        return cls(block, rows, offsets)

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of tokens `[start, stop)`, which lie in one shard."""
        first = start % self.block.num_tokens
        return self.block.read_tokens(first, first + stop - start)

    def __getitem__(self, rows: slice) -> Rows:
        first = rows.start % self.block.num_tokens
        here = slice(first, first + rows.stop - rows.start)
        block = self.rows
        return Rows(
            block.ids[here], block.logprobs[here], block.tail[here], block.label_logprob[here]
        )


@dataclass(frozen=True)
class TiledAlignment:
    """Equal end offsets, and inside a source token the row before it."""

    position: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]

    @classmethod
    def make(cls, source: TokenTable, target: TokenTable) -> TiledAlignment:
        """For one shard, in which all documents have the same offsets."""
        ends, goal = source.document(0)[1], target.document(0)[1]
        position = np.searchsorted(ends, goal, side="right") - 1
        kind = np.where(ends[position] == goal, SPAN, INSIDE)
        kind[position < 0] = NONE
        tiles = target.num_documents
        return cls(np.tile(position, tiles).astype(np.int32), np.tile(kind, tiles).astype(np.uint8))

    def for_documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Positions and kinds of documents `[start, stop)`, which lie in one shard."""
        first = start * DOCUMENT % SHARD
        here = slice(first, first + (stop - start) * DOCUMENT)
        return self.position[here], self.kind[here]


def collate_document(fusion: Fusion, document: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One document's fused ids and probabilities, as a straightforward collator makes them."""
    tokens = torch.from_numpy(fusion.read(document, document + 1).token_ids)
    labels = tokens[1:].long()
    best, lowest = torch.zeros(0), float("inf")
    for source, target_id in zip(fusion.sources, fusion.maps, strict=True):
        rows = source.cache[slice(*source.cache.document_offsets[document : document + 2].tolist())]
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
