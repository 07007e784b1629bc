"""A source that knows the next token, stored as a real cache, across two real tokenizers.

Everything between the cache's files and the fused rows is the real thing; only the model is not.
"""

import numpy as np
import pytest
import zarr

from fusestore.align.alignment_writer import write_alignment
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.cache.id_order import learn_order
from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import load_tokenizer

TEXTS = [
    "The union of these States is perpetual, and no State can lawfully get out of it.",
    "In 1862 the sum was 583,885,247.06 dollars — naïve café costs, 日本 and 🎉 included.",
    "Fellow-citizens of the Senate:\n\n\tWe have, as heretofore, general prosperity.",
]


@pytest.mark.slow
def test_fused_mass_lies_on_the_next_target_token(tmp_path, smollm2_path, gemma3_path):
    target, source = (load_tokenizer(str(path)) for path in (smollm2_path, gemma3_path))
    target_tokens = target.encode(TEXTS, add_bos=target.adds_bos)
    source_tokens = source.encode(TEXTS, add_bos=source.adds_bos)
    following = np.append(source_tokens.token_ids[1:], 0).astype(np.int32)
    label = np.zeros(source_tokens.num_tokens, np.float32)
    label[source_tokens.document_offsets[1:] - 1] = np.nan

    store = Store.open(tmp_path)
    writer = CacheWriter.create(
        store,
        "certain",
        Fingerprint(
            source="certain",
            model=ModelIdentity(spec_digest="none", architecture="oracle", vocab_size=len(source)),
            tokenizer_digest=source.digest,
            tokenizer_length=len(source),
            corpus=CorpusIdentity(name="texts", digest="texts"),
            add_bos=source.adds_bos,
            top_k=1,
            dtype="float32",
            max_length=512,
            num_documents=len(TEXTS),
            num_tokens=source_tokens.num_tokens,
        ),
        source_tokens,
        learn_order(
            len(source),
            source_tokens.token_ids,
            source_tokens.token_ids,
            following[:, None],
            np.ones((len(following), 1), np.bool_),
        ),
    )
    writer.write_shard(
        0,
        Rows(
            following[:, None],
            np.zeros((len(following), 1), np.float32),
            np.full(len(following), -np.inf, np.float32),
            label,
        ),
    )
    writer.finish({}, [])
    cache = open_cache(store, "certain")
    vocabulary_map = map_vocabulary(source.vocabulary, target.vocabulary, "exact")
    alignment = write_alignment(
        store.alignment("certain--target"),
        cache.tokens,
        target_tokens,
        source.vocabulary,
        target.vocabulary,
        source_cache_digest=cache.digest,
        source_corpus_digest="texts",
        target_corpus_digest="texts",
        method="span",
    )
    fusion = prepare(
        Recipe.parse(
            {
                "corpus": "texts",
                "split": "all",
                "target": target.digest,
                "top_k": 2,
                "sources": [{"cache": "certain"}],
            }
        ),
        [
            SourceInput(
                "certain",
                cache,
                cache.digest,
                "texts",
                vocabulary_map.target_id,
                alignment,
                vocabulary_map.digest,
                alignment.manifest.digest,
                len(source),
            )
        ],
        target_tokens=target_tokens,
        tokens_digest="tokens",
        documents=np.arange(len(TEXTS)),
        vocab_size=len(target),
        corpus_digest="texts",
    )
    manifest = materialize(FusedFolder(store.fused("certain"), fusion))
    assert manifest.kinds["span"] > 0.5 * manifest.num_tokens
    assert manifest.sources[0].bits_per_byte == 0.0

    fused = zarr.open_group(str(tmp_path / "fused/certain"), mode="r")
    ids, logprobs = (np.asarray(fused[name])[:, 0] for name in ("ids", "logprobs"))
    # Wherever both tokenizers go on with the same token, all mass must be on it; where they do
    # not, the exact map sends the source's token elsewhere or nowhere.
    source_pos, kind = alignment.for_documents(0, len(TEXTS))
    first = np.repeat(source_tokens.document_offsets[:-1], np.diff(target_tokens.document_offsets))
    next_source = following[first + np.maximum(source_pos, 0)]
    next_ids = np.asarray(fused["next_ids"])
    same = (kind == 1) & (next_ids >= 0) & (vocabulary_map.target_id[next_source] == next_ids)
    assert same.sum() > 0.5 * manifest.num_tokens
    np.testing.assert_array_equal(ids[same], next_ids[same])
    np.testing.assert_allclose(logprobs[same], 0.0, atol=1e-6)
    # And a copying target would differ almost everywhere ("88" does repeat a token).
    assert np.mean(next_ids[same] != fused["input_ids"][:][same]) > 0.9
