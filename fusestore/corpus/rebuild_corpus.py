"""Makes damaged files of a corpus again."""

from __future__ import annotations

from collections.abc import Callable

from fusestore.corpus.build import documents_bytes, publish_documents
from fusestore.corpus.corpus import Corpus, open_corpus
from fusestore.corpus.tokenize import store_corpus_tokens
from fusestore.errors import FusestoreError, IncompatibleError, NotFoundError
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord, Receipt
from fusestore.tokenizers.tokenizer import Tokenizer

TokenizerOf = Callable[[str], Tokenizer]
"""The tokenizer of a digest, or of its first 16 digits; NotFoundError if it was not given."""


def rebuild_corpus(store: Store, name: str, damaged: set[str], tokenizer_of: TokenizerOf) -> None:
    """Make the damaged files of a corpus again.

    Documents come from outside the store. Their table is made again only if its content is sound,
    and the damage is in the Parquet encoding or in the receipt.

    Raises:
        CorruptionError: the documents or the manifest are damaged.
        NotFoundError: tokens are damaged and their tokenizer's model was not given.
    """
    corpus = open_corpus(store, name)
    if FINGERPRINT_FILE in damaged:
        (corpus.location / FINGERPRINT_FILE).delete()
        corpus.manifest.fingerprint.save(corpus.location / FINGERPRINT_FILE)
    if damaged & {"documents.parquet", "receipts/documents.json"}:
        _repair_documents(corpus)
    folders = {file.split("/")[1] for file in damaged if file.startswith("tokens/")}
    for folder in sorted(folders):
        tokenizer = tokenizer_of(folder.partition("-")[0])
        (corpus.location / "tokens" / folder).delete()
        store_corpus_tokens(store, corpus, tokenizer, folder.endswith("-bos"))


def _repair_documents(corpus: Corpus) -> None:
    # `table` compares the content with the digest in the manifest.
    data = documents_bytes(corpus.table())
    file = corpus.location / "receipts/documents.json"
    receipt = Receipt.load_if_sound(file)
    if receipt is not None and receipt.files != {"documents.parquet": FileRecord.of(data)}:
        raise IncompatibleError(
            f"{corpus.location}/documents.parquet holds the right documents, but this version of "
            "Polars encodes them in other bytes than its receipt names. Use the version that wrote "
            f"it, or delete {file} and repair again to accept the new bytes."
        )
    file.delete()
    publish_documents(corpus.location, corpus.manifest, data)


def find_corpus(store: Store, digest: str) -> Corpus:
    """The corpus of this digest, or of a digest that begins with it.

    Raises:
        NotFoundError: the store holds no such corpus, or it is damaged.
    """
    for name in store.names("corpora"):
        try:
            corpus = open_corpus(store, name)
        except FusestoreError:
            continue
        if corpus.digest.startswith(digest):
            return corpus
    raise NotFoundError(f"{store.location} holds no sound corpus of digest {digest[:16]}.")
