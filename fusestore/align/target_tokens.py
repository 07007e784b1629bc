"""The target's tokens of a corpus, for a model, a tokenizer or a digest."""

from __future__ import annotations

from fusestore.align.manifest import AlignmentFingerprint
from fusestore.align.tokens_digest import tokens_digest
from fusestore.cache.reader import Cache
from fusestore.corpus.corpus import Corpus
from fusestore.corpus.document_encoder import DocumentEncoder
from fusestore.corpus.tokenize import (
    StoredTokens,
    find_corpus_tokens,
    find_tokens,
    store_corpus_tokens,
)
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.target import Target
from fusestore.store.layout import Store
from fusestore.tokenizers.chat_encoder import TemplateIdentity


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


def aligned_tokens(corpus: Corpus, fingerprint: AlignmentFingerprint) -> StoredTokens:
    """The tokens of the target that an alignment is to.

    Raises:
        NotFoundError: the corpus does not have them.
    """
    digest, num_tokens = fingerprint.target_tokenizer_digest, fingerprint.num_target_tokens
    found = [
        tokens
        for tokens in find_corpus_tokens(corpus, digest)
        if tokens.manifest.num_tokens == num_tokens
    ]
    if len(found) < 2:
        return find_tokens(corpus, digest, num_tokens)
    # Two chat templates may write as many.
    same = (each for each in found if tokens_digest(each) == fingerprint.target_tokens_digest)
    return next(same, found[0])


def shares_tokens(store: Store, corpus: Corpus, cache: Cache, target: Target) -> bool:
    """Whether a cache's tokens are the target's own, so that no alignment is needed.

    Its tokenizer must be the target's and, of conversations, what its chat template makes of them.

    Raises:
        As for `target_tokens`.
    """
    fingerprint = cache.fingerprint
    if fingerprint.tokenizer_digest != target.digest:
        return False
    if fingerprint.origin is not None:
        # Whoever made its rows may have split the texts in another way.
        return tokens_digest(cache) == tokens_digest(target_tokens(store, corpus, target))
    template = _template_of(corpus, target)
    if fingerprint.template is None or template is None or fingerprint.template == template:
        return True
    # Two templates may write the same.
    found = {each.manifest.template: each for each in find_corpus_tokens(corpus, target.digest)}
    own = found.get(fingerprint.template)
    return own is not None and own.digest == target_tokens(store, corpus, target).digest


def _template_of(corpus: Corpus, target: Target) -> TemplateIdentity | None:
    """The target's chat template; None for texts, or where only a digest tells the target."""
    if corpus.manifest.fingerprint.chat is None or target.template is not None:
        return target.template
    if target.adds_bos is None:
        return None
    return DocumentEncoder.of(corpus, target.tokenizer, add_bos=False).template


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
