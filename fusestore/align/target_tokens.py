"""The target's tokens of a corpus, by whatever the target was named."""

from __future__ import annotations

from fusestore.corpus.build import Corpus
from fusestore.corpus.tokenize import StoredTokens, find_corpus_tokens, store_corpus_tokens
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.target import Target
from fusestore.store.layout import Store


def target_tokens(store: Store, corpus: Corpus, target: Target) -> StoredTokens:
    """The target's tokens of the corpus; made first where they are missing and can be made.

    Raises:
        NotFoundError: they are missing, and nothing tells where the target's tokenizer is.
        InvalidInputError: they are there with BOS and without, and nothing tells which are meant.
        CorruptionError: they are damaged.
    """
    found = find_corpus_tokens(corpus, target.digest)
    if target.adds_bos is not None:
        for tokens in found:
            if tokens.manifest.add_bos == target.adds_bos:
                return tokens
        return store_corpus_tokens(store, corpus, target.tokenizer, target.adds_bos)
    if not found:
        raise NotFoundError(
            f"Corpus {corpus.name!r} has no tokens of the target {target.digest[:16]} yet. Name "
            "the target's model, as in --target MODEL, instead of the digest of its tokenizer."
        )
    if len(found) > 1:
        raise InvalidInputError(
            f"Corpus {corpus.name!r} has tokens of the target {target.digest[:16]} with BOS and "
            "without. Name the target's model, as in --target MODEL: its own rule decides."
        )
    return found[0]
