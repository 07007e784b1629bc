"""Which bytes of a corpus a tokenizer cannot spell: its model reads the text without them."""

from __future__ import annotations

from collections.abc import Iterator

from fusestore.corpus.corpus import Corpus
from fusestore.tokenizers.tokenizer import Tokenizer


def describe_unspelled(corpus: Corpus, tokenizer: Tokenizer) -> str | None:
    """One sentence that names the bytes and counts their documents; None if all bytes are spelled.

    The documents are read only for a vocabulary that lacks bytes.
    """
    if not tokenizer.unspelled_bytes:
        return None
    found: set[int] = set()
    documents = 0
    for texts in _read(corpus):
        for text in texts:
            unspelled = tokenizer.unspelled(text)
            found.update(unspelled)
            documents += bool(unspelled)
    if not documents:
        return None
    holders = "1 document holds" if documents == 1 else f"{documents:,} documents hold"
    return (
        f"{holders} bytes that the vocabulary of {tokenizer.name} lacks "
        f"({bytes(sorted(found)).hex(' ')}); its model reads the text without them"
    )


def _read(corpus: Corpus) -> Iterator[list[str]]:
    """The texts that models read; of conversations the contents of turns."""
    if corpus.manifest.fingerprint.chat is None:
        yield from corpus.text_batches()
        return
    for batch in corpus.conversation_batches():
        yield ["\n".join(conversation.contents) for conversation in batch]
