"""`Vocabulary`: every token id of a tokenizer as the bytes of text it stands for.

Alignment compares tokens through this table alone, so it needs neither the tokenizer nor its
class, and a store that holds the table can be aligned anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

TokenKind = Literal["text", "byte", "special", "unused"]
"""`byte` is a byte-fallback token; `unused` an id in the range that no token has."""

Role = Literal["bos", "eos", "pad", "unk"]


@dataclass(frozen=True)
class Spelling:
    """The bytes of text that each of V token ids spells, end to end, for compiled loops.

    Attributes:
        data: uint8 [B].
        offsets: int64 [V + 1]: id i spells `data[offsets[i]:offsets[i + 1]]`; special and unused
            ids spell nothing.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, token_bytes: Sequence[bytes], kinds: Sequence[TokenKind]) -> Spelling:
        """The spelling of ids with these bytes and kinds."""
        spelled = [
            token if kind in ("text", "byte") else b""
            for token, kind in zip(token_bytes, kinds, strict=True)
        ]
        offsets = np.zeros(len(spelled) + 1, np.int64)
        np.cumsum([len(token) for token in spelled], out=offsets[1:])
        return cls(np.frombuffer(b"".join(spelled), np.uint8), offsets)

    @cached_property
    def heads(self) -> npt.NDArray[np.uint64]:
        """uint64 [V], the first eight bytes of each id, zeros behind a shorter one's end.

        Most comparisons end here, with one access to memory instead of three.
        """
        place = np.arange(8)
        inside = place < np.minimum(self.lengths, 8)[:, None]
        heads = np.zeros(inside.shape, np.uint8)
        heads[inside] = self.data[(self.offsets[:-1, None] + place)[inside]]
        return heads.view("<u8").reshape(-1)

    @property
    def spaced(self) -> npt.NDArray[np.bool_]:
        """Bool [V], whether each id begins with a space."""
        result: npt.NDArray[np.bool_] = (self.heads & np.uint64(0xFF)) == ord(" ")
        return result

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32 [V], number of bytes of each id."""
        return np.diff(self.offsets).astype(np.int32)


NO_SPELLING = Spelling(np.frombuffer(b"", np.uint8), np.zeros(1, np.int64))
"""Of no ids; `data` is read-only like any other, so that kernels are compiled for one type."""


@dataclass(frozen=True)
class Vocabulary:
    """One entry per id from 0 to the largest id of the tokenizer.

    Attributes:
        tokenizer_digest: SHA-256 of the tokenizer's canonical form, hexadecimal.
        token_bytes: the UTF-8 bytes of each token. A token that continues a word has no leading
            space; a token that starts a word has the space that its tokenizer writes for it.
            Special tokens have the bytes of their content; unused ids are empty.
        kinds: the kind of each id.
        roles: special ids by role; an id may have several roles.
    """

    tokenizer_digest: str
    token_bytes: tuple[bytes, ...]
    kinds: tuple[TokenKind, ...]
    roles: tuple[tuple[Role, int], ...]

    def __len__(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def spelling(self) -> Spelling:
        """The bytes of all ids end to end; made once."""
        return Spelling.of(self.token_bytes, self.kinds)

    def role(self, role: Role) -> int | None:
        """The id with this role, if any."""
        return dict(self.roles).get(role)
