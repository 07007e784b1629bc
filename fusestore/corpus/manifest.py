"""`CorpusManifest`: the content of a corpus and how it was cut, but not where it was made."""

from __future__ import annotations

from pydantic import Field

from fusestore.store.file_listing import FileListing
from fusestore.store.licenses import License
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.tokenizers.chat_encoder import TemplateIdentity
from fusestore.tokenizers.conversation import TrainOn

LICENSE_FILE = "license.json"
"""In the folder of a corpus of which a license was stated."""


class SplitSize(Frozen):
    """Size of one split.

    Attributes:
        num_documents: documents, after segmentation.
        num_bytes: bytes of UTF-8 text.
    """

    num_documents: Count
    num_bytes: Count


class Segmentation(Frozen):
    """How long source documents were cut.

    Attributes:
        max_length: most tokens of a document in any of the tokenizers, BOS included; None if
            documents are whole.
        bos_allowance: tokens of `max_length` kept free for BOS.
        tokenizer_digests: sorted; the order of the tokenizers does not matter.
    """

    max_length: Count | None
    bos_allowance: Count
    tokenizer_digests: tuple[str, ...]


class ChatSettings(Frozen):
    """How conversations are read.

    Attributes:
        train_on: which turns are trained on.
        template_variables: passed to every chat template; `add_generation_prompt` only with a
            conversation whose last turn is not the assistant's.
        fallback_template: the chat template of models that have none, in Jinja.
    """

    train_on: TrainOn
    template_variables: dict[str, str | bool | int | float] = Field(default_factory=dict)
    fallback_template: str | None = None


class CorpusFingerprint(Manifest):
    """What a corpus depends on; written before its documents.

    Attributes:
        input_digest: SHA-256 of the source documents' names, splits and texts, and conversations if
            they are such, in order.
        segmentation: how the source documents were cut.
        chat: of a corpus of conversations; null for texts.
    """

    input_digest: str
    segmentation: Segmentation
    chat: ChatSettings | None


class CorpusManifest(Manifest):
    """The manifest of a corpus; its digest identifies the corpus.

    Attributes:
        fingerprint: inputs and settings of the corpus.
        documents_digest: SHA-256 of the documents' names, segment numbers, splits and texts, and
            conversations if they are such, after segmentation.
        num_sources: source documents that were kept.
        dropped_blank: source documents left out because they hold only white space.
        num_documents: D, documents after segmentation.
        num_bytes: bytes of UTF-8 text in all documents.
        forced_cuts: cuts where some tokenizer has no token end; see `segment`.
        dropped_exchanges: exchanges of conversations left out because they are longer than a
            document may be; see `segment_conversation`.
        splits: sizes by split name.
    """

    fingerprint: CorpusFingerprint
    documents_digest: str
    num_sources: Count
    dropped_blank: Count
    num_documents: Count
    num_bytes: Count
    forced_cuts: Count
    dropped_exchanges: Count
    splits: dict[str, SplitSize]


class CorpusLicense(Manifest):
    """The license of a corpus: a document of its own, because a corpus is known by its manifest.

    Attributes:
        corpus_digest: of the corpus manifest.
        license: of the texts.
    """

    corpus_digest: str
    license: License


class TokensManifest(Manifest):
    """The manifest of the tokens of one corpus in one tokenizer.

    Attributes:
        corpus_digest: of the corpus manifest.
        tokenizer_digest: of the tokenizer.
        add_bos: whether every document starts with BOS; false for conversations, where the template
            says so.
        template: the chat template of conversations; null for texts.
        num_documents: D.
        num_tokens: T, BOS included.
        arrays_digest: SHA-256 over the three digests (as bytes) of ids, end offsets and document
            offsets, little-endian.
        files: records of every file, by path inside the folder.
    """

    corpus_digest: str
    tokenizer_digest: str
    add_bos: bool
    template: TemplateIdentity | None
    num_documents: Count
    num_tokens: Count
    arrays_digest: str
    files: FileListing
