"""What a model has read at a token, by the tokens on one side and by the text on the other.

The text's side uses neither end offsets nor origins: it normalizes the text up to an offset anew.
"""

from __future__ import annotations

import json
from itertools import accumulate

from fusestore.tokenizers.tokenizer import Tokenizer


def read_by_tokens(tokenizer: Tokenizer, ids) -> list[bytes]:
    """The bytes read up to and with each token."""
    return list(accumulate(tokenizer.vocabulary.token_bytes[i] for i in ids))


def read_of_text(tokenizer: Tokenizer, data: bytes, end: int) -> bytes:
    """The bytes that a reader of `data[:end]` has read, as the tokenizer changes text."""
    whole = data[:end].decode(errors="ignore")
    rest = data[len(whole.encode()) : end]
    normalizer = tokenizer._backend.normalizer
    # Some normalizers put a space before every text but the empty one.
    changed = (whole or "x") if normalizer is None else normalizer.normalize_str(whole or "x")
    changed = changed if whole else changed.removesuffix("x")
    if "ByteLevel" not in json.dumps(tokenizer._serialized["decoder"]):
        changed = changed.replace("▁", " ")
    return bytes(b for b in changed.encode() + rest if b not in tokenizer.unspelled_bytes)


def exact_ends(ends) -> list[int]:
    """The tokens that end exactly: those without a token after them that ends at the same byte."""
    return [i for i, end in enumerate(ends) if i + 1 == len(ends) or ends[i + 1] != end]


def check_ends(tokenizer: Tokenizer, text: str) -> int:
    """Check every exact end of a text against what was read; returns how many there are."""
    data = text.encode()
    ids, ends = (column.tolist() for column in tokenizer.encode([text], False).document(0))
    assert ends == sorted(ends)
    assert all(0 <= end <= len(data) for end in ends)
    reads = read_by_tokens(tokenizer, ids)
    whole = read_of_text(tokenizer, data, len(data))
    if not ids or reads[-1] not in (whole, b" " + whole):
        return _check_letters(tokenizer, data, ids, ends, reads)
    added = reads[-1].removesuffix(whole) if whole else reads[-1]
    exact = exact_ends(ends)
    for index in exact:
        end = ends[index]
        assert reads[index] == added + read_of_text(tokenizer, data, end), (text, index, end)
        after = data[end:].decode(errors="ignore")[:1].encode()
        if after:
            longer = read_of_text(tokenizer, data, end + len(after))
            assert reads[index] != added + longer, (text, index, end)
    if ids:
        assert ends[-1] == len(data)
    return len(exact)


def _check_letters(tokenizer, data, ids, ends, reads) -> int:
    """The same where spaces are no part of tokens, up to the first token of unknown text."""
    kinds = [tokenizer.vocabulary.kinds[i] for i in ids]
    known = kinds.index("special") if "special" in kinds else len(kinds)
    exact = [index for index in exact_ends(ends) if index < known]
    for index in exact:
        expected = read_of_text(tokenizer, data, ends[index])
        assert b"".join(reads[index].split()) == b"".join(expected.split()), (data, index)
    return len(exact)
