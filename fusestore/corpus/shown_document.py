"""One document of a corpus, for people, and as JSON that holds its whole conversation."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from fusestore.corpus.corpus import Corpus
from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.store.artifact_types import View
from fusestore.store.manifest import Frozen
from fusestore.store.shown_table import ShownTable
from fusestore.tokenizers.conversation import Conversation


class ShownTurn(Frozen):
    """A turn of a conversation.

    Attributes:
        role: as chat templates name it.
        start: byte of the document's text at which its content begins.
        stop: byte at which its content ends.
        trained_on: whether it is supervised.
    """

    role: str
    start: int
    stop: int
    trained_on: bool


class ShownConversation(Frozen):
    """A conversation as it was given.

    Attributes:
        messages: its turns, with every field that chat templates read.
        tools: schemas of the tools that the assistant may call.
        keep_white_space: whether white space around a turn's content is part of it.
        repeated: first turns that an earlier segment of the same conversation holds too.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    keep_white_space: bool = False
    repeated: int = 0


class ShownDocument(Frozen):
    """A document of a corpus; what `fusestore show corpus/NAME --document N --json` prints.

    Attributes:
        document: its index in the corpus.
        source: name of the source document that it is a segment of.
        segment: which segment it is, from 0.
        split: name of its split.
        text: its text; of a conversation, the text that stands for it in the corpus.
        byte_length: bytes of the text in UTF-8.
        digest: SHA-256 of these bytes.
        conversation: the conversation; null where the document is a text.
        turns: where its turns lie in the text; null where the document is a text.
    """

    document: int
    source: str
    segment: int
    split: str
    text: str
    byte_length: int
    digest: str
    conversation: ShownConversation | None
    turns: tuple[ShownTurn, ...] | None


def shown_document(corpus: Corpus, document: int) -> View:
    """The text of a document, or the turns of a conversation.

    Raises:
        InvalidInputError: the corpus has no such document.
        CorruptionError: the documents are missing or damaged.
    """
    if document >= corpus.manifest.num_documents:
        raise InvalidInputError(
            f"Corpus {corpus.name!r} has {corpus.manifest.num_documents:,} documents; give an "
            f"index below that, not {document}."
        )
    row: dict[str, Any] = corpus.table().row(document, named=True)
    title = f"{row['source']}, segment {row['segment']}, split {row['split']}"
    try:
        content = _typed(row).model_dump(mode="json")
    except (ValidationError, InvalidInputError) as error:
        raise CorruptionError(
            f"{corpus.location}: document {document} is not what fusestore writes: {error}"
        ) from error
    if row["conversation"] is None:
        return View(content, [ShownTable(title, ["text"], [[row["text"]]])])
    data = row["text"].encode()
    lines = [
        [turn["role"], "yes" if turn["trained_on"] else "no", _content(data, turn)]
        for turn in row["turns"]
    ]
    return View(content, [ShownTable(title, ["role", "trained on", "content"], lines)])


def _typed(row: dict[str, Any]) -> ShownDocument:
    conversation = None
    if row["conversation"] is not None:
        given = Conversation.from_json(row["conversation"])
        conversation = ShownConversation(
            messages=tuple(map(dict, given.messages)),
            tools=tuple(map(dict, given.tools)),
            keep_white_space=given.keep_white_space,
            repeated=given.repeated,
        )
    return ShownDocument(**{**row, "conversation": conversation})


def _content(data: bytes, turn: dict[str, Any]) -> str:
    return data[turn["start"] : turn["stop"]].decode()
