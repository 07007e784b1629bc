"""`Vocabulary`: every token id of a tokenizer as the bytes of text it stands for.

Alignment compares tokens through this table alone, so it needs neither the tokenizer nor its
class, and a store that holds the table can be aligned anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TokenKind = Literal["text", "byte", "special", "unused"]
"""`byte` is a byte-fallback token; `unused` an id in the range that no token has."""

Role = Literal["bos", "eos", "pad", "unk"]


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

    def role(self, role: Role) -> int | None:
        """The id with this role, if any."""
        return dict(self.roles).get(role)
