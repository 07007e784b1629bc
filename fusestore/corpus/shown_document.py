"""One document of a corpus, for people, and as JSON that holds its whole conversation."""

from __future__ import annotations

import json
from typing import Any

from fusestore.corpus.corpus import Corpus
from fusestore.errors import InvalidInputError
from fusestore.store.artifact_types import View
from fusestore.store.shown_table import ShownTable


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
    if row["conversation"] is None:
        content = {name: value for name, value in row.items() if value is not None}
        return View(content, [ShownTable(title, ["text"], [[row["text"]]])])
    row["conversation"] = json.loads(row["conversation"])
    data = row["text"].encode()
    lines = [
        [turn["role"], "yes" if turn["trained_on"] else "no", _content(data, turn)]
        for turn in row["turns"]
    ]
    return View(row, [ShownTable(title, ["role", "trained on", "content"], lines)])


def _content(data: bytes, turn: dict[str, Any]) -> str:
    return data[turn["start"] : turn["stop"]].decode()
