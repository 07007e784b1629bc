"""The target's tokens of a corpus, for a model, a tokenizer or a digest."""

from __future__ import annotations

from fusestore.corpus.corpus import Corpus
from fusestore.corpus.tokenize import StoredTokens, find_corpus_tokens, store_corpus_tokens
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.target import Target
from fusestore.store.layout import Store


def target_tokens(store: Store, corpus: Corpus, target: Target) -> StoredTokens:
    """The target's tokens of the corpus; made if they are missing and the tokenizer is given.

    Raises:
        NotFoundError: they are missing, and only the digest of the tokenizer is given.
        InvalidInputError: the store has them with and without BOS, and only the digest is given.
        CorruptionError: they are damaged.
    """
    stored = find_corpus_tokens(corpus, target.digest)
    if corpus.manifest.fingerprint.chat is not None:
        return _of_conversations(store, corpus, target, stored)
    if target.adds_bos is not None:
        for tokens in stored:
            if tokens.manifest.add_bos == target.adds_bos:
                return tokens
        return store_corpus_tokens(store, corpus, target.tokenizer, target.adds_bos)
    if not stored:
        raise _missing(corpus, target)
    if len(stored) > 1:
        raise InvalidInputError(
            f"Corpus {corpus.name!r} has tokens of the target {target.digest[:16]} with BOS and "
            "without. Name the target's model, as in --target MODEL, to choose by its own rule."
        )
    return stored[0]


def _of_conversations(
    store: Store, corpus: Corpus, target: Target, stored: list[StoredTokens]
) -> StoredTokens:
    """As `target_tokens`; one tokenizer may come with several chat templates."""
    if target.template is not None:
        stored = [tokens for tokens in stored if tokens.manifest.template == target.template]
    elif target.adds_bos is not None:
        return store_corpus_tokens(store, corpus, target.tokenizer, target.adds_bos)
    if len(stored) > 1:
        raise InvalidInputError(
            f"Corpus {corpus.name!r} has tokens of the target {target.digest[:16]} by several chat "
            "templates. Name the target's model, as in --target MODEL."
        )
    if not stored:
        if target.adds_bos is None:
            raise _missing(corpus, target)
        return store_corpus_tokens(store, corpus, target.tokenizer, target.adds_bos)
    return stored[0]


def _missing(corpus: Corpus, target: Target) -> NotFoundError:
    return NotFoundError(
        f"Corpus {corpus.name!r} has no tokens of the target {target.digest[:16]}. Name the "
        "target's model, as in --target MODEL, instead of the digest of its tokenizer."
    )
