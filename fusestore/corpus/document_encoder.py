"""`DocumentEncoder`: how a model reads the documents of a corpus: texts, or conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from fusestore.corpus.corpus import Corpus
from fusestore.tokenizers.chat_encoder import ChatEncoder, TemplateIdentity
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder


@dataclass(frozen=True)
class DocumentEncoder:
    """A tokenizer with what the corpus and the settings add to it.

    Attributes:
        corpus: the corpus.
        tokenizer: the tokenizer.
        add_bos: whether documents begin with BOS; false for conversations, whose template decides.
        chat: encodes conversations; None for texts.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    add_bos: bool
    chat: ChatEncoder | None

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Tokenizer, *, add_bos: bool) -> DocumentEncoder:
        """The encoder of a corpus.

        Raises:
            IncompatibleError: the corpus holds conversations, and the tokenizer has no chat
                template, or one that cannot be used.
        """
        chat = corpus.manifest.fingerprint.chat
        if chat is None:
            return cls(corpus, tokenizer, add_bos, None)
        encoder = chat_encoder(tokenizer, chat.template_variables, chat.fallback_template)
        return cls(corpus, tokenizer, False, encoder)

    @property
    def template(self) -> TemplateIdentity | None:
        """The chat template of conversations; None for texts."""
        return None if self.chat is None else self.chat.identity

    def batches(self) -> Iterator[TokenTable]:
        """The tokens of all documents, a batch of documents at a time.

        Raises:
            IncompatibleError: BOS is requested of a tokenizer without one.
            InvalidInputError: a conversation cannot be read by the model; the message names it.
        """
        if self.chat is None:
            for texts in self.corpus.text_batches():
                yield self.tokenizer.encode(texts, self.add_bos)
            return
        first = 0
        for batch in self.corpus.conversation_batches():
            yield self.chat.encode(batch, partial(self._describe, first))
            first += len(batch)

    def _describe(self, first: int, within: int) -> str:
        document = first + within
        return f"Document {document} ({self.corpus.describe(document)})"
