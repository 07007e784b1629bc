"""A store with two captured caches and an alignment, small enough to make in a second."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusestore.align.run import align
from fusestore.cache.id_order import learn_order
from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter
from fusestore.corpus.build import write_corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary_table import save_vocabulary
from tests.helpers.tiny_models import TEXTS, train_tokenizer

K = 4
ROWS_PER_SHARD = 100


@dataclass(frozen=True)
class SmallStore:
    """The store, and the recipe that fuses all it holds."""

    store: Store
    target: Tokenizer

    @property
    def root(self) -> str:
        return self.store.location.url

    def recipe(self, **changes):
        return {
            "corpus": "c",
            "split": "train",
            "target": self.target.digest,
            "sources": [{"cache": "own"}, {"cache": "other"}],
            "top_k": K,
            "window_length": 32,
            "rows_per_shard": ROWS_PER_SHARD,
            **changes,
        }


def make_small_store(root: str | Path, folder: Path, *, held_out: int = 0) -> SmallStore:
    """Caches `own` (the target's tokenizer) and `other`, over 40 documents of corpus `c`.

    The last `held_out` documents are split `held_out`, all others split `train`.
    """
    store = Store.open(root)
    texts = [f"Number {index}. {TEXTS[index % len(TEXTS)]}" for index in range(40)]
    file = folder / "texts.jsonl"
    splits = ["train"] * (40 - held_out) + ["held_out"] * held_out
    rows = [
        json.dumps({"text": text, "split": split})
        for text, split in zip(texts, splits, strict=True)
    ]
    file.write_text("".join(f"{row}\n" for row in rows))
    corpus = write_corpus(store, "c", file, split_column="split" if held_out else None)
    target = Tokenizer(train_tokenizer(TEXTS, 300), "target")
    other = Tokenizer(train_tokenizer(TEXTS[::2], 330, adds_bos=True), "other")
    for seed, (name, tokenizer) in enumerate({"own": target, "other": other}.items()):
        save_vocabulary(store, tokenizer.vocabulary)
        tokens = corpus_tokens(store, corpus, tokenizer, tokenizer.adds_bos)
        write_cache(store, name, tokenizer, tokens, corpus.digest, seed)
    align(store, "other", target)
    return SmallStore(store, target)


def write_cache(store, name, tokenizer, tokens, corpus_digest, seed):
    """Random rows, in shards of 200 and chunks of 50."""
    rng = np.random.default_rng(seed)
    size, vocab_size = tokens.num_tokens, len(tokenizer)
    mass = np.sort(rng.dirichlet(np.ones(K + 1), size), axis=1)[:, ::-1]
    ids = np.argsort(rng.random((size, vocab_size)), axis=1)[:, :K].astype(np.int32)
    logprobs = np.log(mass).astype(np.float32)
    label = -rng.exponential(2.0, size).astype(np.float32)
    label[tokens.document_offsets[1:] - 1] = np.nan
    present = np.ones(ids.shape, np.bool_)
    writer = CacheWriter.create(
        store,
        name,
        Fingerprint(
            source=name,
            model=ModelIdentity(spec_digest="5" * 64, architecture="Toy", vocab_size=vocab_size),
            tokenizer_digest=tokenizer.digest,
            tokenizer_length=vocab_size,
            corpus=CorpusIdentity(name="c", digest=corpus_digest),
            add_bos=tokenizer.adds_bos,
            top_k=K,
            dtype="float32",
            max_length=512,
            rows_per_shard=200,
            rows_per_chunk=50,
            num_documents=tokens.num_documents,
            num_tokens=size,
        ),
        tokens,
        learn_order(vocab_size, tokens.token_ids, tokens.token_ids, ids, present),
    )
    for shard in writer.missing_shards():
        here = slice(*writer.plan.bounds(shard))
        writer.write_shard(
            shard, Rows(ids[here], logprobs[here, :K], logprobs[here, K], label[here])
        )
    writer.finish({}, [])
