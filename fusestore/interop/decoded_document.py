"""The text that token ids stand for, and the byte at which each token ends in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import Ids, checked_ids
from fusestore.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodedDocument:
    """A text with its tokens.

    Attributes:
        text: of the document.
        token_ids: int32 [n], those given without special tokens at the end.
        end_offsets: int32 [n], in bytes of the text.
        as_encoded: whether the tokenizer makes the same tokens of the text.
    """

    text: str
    token_ids: npt.NDArray[np.int32]
    end_offsets: npt.NDArray[np.int32]
    as_encoded: bool


class Decoder:
    """Decodes documents of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, spell_special: bool) -> None:
        """`spell_special`: special tokens inside a document are text; otherwise refused."""
        self._tokenizer = tokenizer
        self._spell_special = spell_special
        vocabulary = tokenizer.vocabulary
        self._bytes = vocabulary.token_bytes
        self._special = np.array([kind == "special" for kind in vocabulary.kinds])
        self._unused = np.array([kind == "unused" for kind in vocabulary.kinds])
        first = tokenizer.encode(["a"], add_bos=False).token_ids
        # As sentencepiece does before the first word of a text.
        self._adds_space = b"".join(self._bytes[i] for i in first) == b" a"

    def decode(self, place: str, token_ids: Ids) -> DecodedDocument | None:
        """The text of the ids; None if nothing but special tokens is left.

        Special tokens at the end are left out, and tokens of a character that is cut off there.

        Raises:
            InvalidInputError: an id that no token has, a special token inside the document, or
                bytes that are no UTF-8.
        """
        checked_ids(place, "token id", token_ids, len(self._bytes))
        content = np.flatnonzero(~self._special[token_ids])
        if not len(content):
            return None
        ids = token_ids[: int(content[-1]) + 1]
        has_bos = bool(ids[0] == self._tokenizer.bos_id)
        self._check(place, ids, has_bos)
        spelled = [self._bytes[i] for i in ids]
        if has_bos:
            spelled[0] = b""
        data = b"".join(spelled)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                raise InvalidInputError(
                    f"{place} spells bytes that are no text: byte {error.start}, "
                    f"{data[error.start]:02x}, is no UTF-8. The token ids may be of another "
                    "tokenizer, or the document begins inside a character."
                ) from error
            text = data[: error.start].decode()
            ends = np.cumsum([len(each) for each in spelled])
            ids = ids[: int(np.searchsorted(ends, len(text.encode()), side="right"))]
            spelled = spelled[: len(ids)]
            text = b"".join(spelled).decode()
            if not text:
                return None
        texts = [text[1:], text] if self._adds_space and text.startswith(" ") else [text]
        for candidate in texts:
            table = self._tokenizer.encode([candidate], add_bos=has_bos)
            if np.array_equal(table.token_ids, ids):
                return DecodedDocument(candidate, table.token_ids, table.end_offsets, True)
        ends = np.cumsum([len(each) for each in spelled]) - (len(texts) - 1)
        return DecodedDocument(
            texts[0], ids.astype(np.int32), np.maximum(ends, 0).astype(np.int32), False
        )

    def _check(self, place: str, ids: Ids, has_bos: bool) -> None:
        unused = np.flatnonzero(self._unused[ids])
        if len(unused):
            raise InvalidInputError(
                f"{place} has token id {ids[unused[0]]} at position {unused[0]}, which no token of "
                f"{self._tokenizer.name!r} has. The ids are of another tokenizer."
            )
        special = np.flatnonzero(self._special[ids])
        special = special[special >= int(has_bos)]
        if len(special) and not self._spell_special:
            token = self._bytes[ids[special[0]]].decode("utf-8", "backslashreplace")
            raise InvalidInputError(
                f"{place} has the special token {token} (id {ids[special[0]]}) inside it, at "
                f"position {special[0]}: it is a conversation, or several texts in one. With "
                "--special-tokens spell, the spelling of such tokens is text of the corpus."
            )
