"""A small synthetic cache: what a capture would hand to the writer."""

from dataclasses import dataclass

import numpy as np
import pytest

from fusestore.cache.id_order import IdOrder, learn_order
from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter
from fusestore.tokenizers.token_table import TokenTable


@dataclass(frozen=True)
class Capture:
    """Everything that goes into a cache."""

    fingerprint: Fingerprint
    tokens: TokenTable
    order: IdOrder | None
    rows: Rows

    def shard_rows(self, shard):
        start, stop = self.fingerprint.plan.bounds(shard)
        rows = self.rows
        return Rows(
            rows.ids[start:stop],
            rows.logprobs[start:stop],
            rows.tail[start:stop],
            rows.label_logprob[start:stop],
        )

    def begin(self, store, name="demo"):
        return CacheWriter.create(store, name, self.fingerprint, self.tokens, self.order)

    def write(self, store, name="demo"):
        writer = self.begin(store, name)
        for shard in writer.missing_shards():
            writer.write_shard(shard, self.shard_rows(shard))
        return writer.finish({"label_logprob": -1.5}, [])


def make_capture(lengths=(5, 0, 1, 14, 20), vocab_size=50, k=10, seed=0, absent=0.0, **settings):
    generator = np.random.default_rng(seed)
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = TokenTable(
        generator.integers(0, min(vocab_size, 60), total).astype(np.int32),
        np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        offsets,
    )
    logits = generator.normal(0, 3, (total, min(vocab_size, 500)))
    logits[generator.random(logits.shape) < absent] = -np.inf
    logits[:, [0, -1]] = 0
    full = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-full, axis=1, kind="stable")
    kept = np.take_along_axis(full, order[:, :k], 1)
    rest = np.take_along_axis(full, order[:, k:], 1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(rest).sum(1))
    label = full[:, -1].copy()
    label[offsets[1:][np.diff(offsets) > 0] - 1] = np.nan
    ids = order[:, :k] * (vocab_size // full.shape[1])
    rows = Rows(
        ids.astype(np.int32), kept.astype(np.float32), tail.astype(np.float32), label.astype("f4")
    )
    if settings.get("logprob_step", 1) is None:
        settings.setdefault("profile", "lossless")
    fingerprint = Fingerprint(
        **{
            "source": "toy",
            "model": ModelIdentity(
                spec_digest="5" * 64, architecture="ToyForCausalLM", vocab_size=vocab_size
            ),
            "tokenizer_digest": "7" * 64,
            "tokenizer_length": vocab_size,
            "corpus": CorpusIdentity(name="talk", digest="9" * 64),
            "add_bos": False,
            "top_k": k,
            "dtype": "float32",
            "max_length": 64,
            "rows_per_shard": 16,
            "rows_per_chunk": 4,
            "num_documents": len(lengths),
            "num_tokens": total,
            **settings,
        }
    )
    order = None
    if fingerprint.profile != "fast":
        sample = slice(0, total // 2)
        present = rows.logprobs[sample] > -np.inf
        order = learn_order(
            vocab_size, tokens.token_ids, tokens.token_ids[sample], rows.ids[sample], present
        )
    return Capture(fingerprint, tokens, order, rows)


@pytest.fixture
def capture():
    return make_capture()


@pytest.fixture(scope="session")
def make():
    return make_capture
