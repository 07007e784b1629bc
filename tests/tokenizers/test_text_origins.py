"""Origins of normalized text, against normalizing every beginning of the text anew."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers

from fusestore.tokenizers.text_origins import INSIDE, TextNormalizer, replaced, without_bytes
from tests.helpers.difficult_texts import PIECES

NORMALIZERS = {
    "nfc": normalizers.NFC(),
    "nfd": normalizers.NFD(),
    "nfkc": normalizers.NFKC(),
    "nfkd": normalizers.NFKD(),
    "lower": normalizers.Lowercase(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(lowercase=True),
    "spaces": normalizers.Replace(" ", "▁"),
    "llama": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "runs": normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
    "albert": normalizers.Sequence(
        [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents()]
    ),
    "nmt": normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
}

TEXT = st.lists(
    st.one_of(
        st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    ),
    max_size=4,
).map("".join)


def origins_of(normalizer, text):
    """The normalized text, and its origins as a list."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    normalized, origins = TextNormalizer(json.loads(backend.to_str())["normalizer"])(text)
    assert normalized == normalizer.normalize_str(text)
    if origins is None:
        assert normalized == text
        return normalized, list(range(len(text.encode()) + 1))
    return normalized, origins.tolist()


@pytest.mark.parametrize("name", NORMALIZERS)
@given(text=TEXT)
@example(text="cafe\u0301 ½ \u1112\u1161\u11ab ﷺ İ 漢 ``a''   b")
@hypothesis_settings(deadline=None, max_examples=40)
def test_an_origin_is_where_just_that_much_was_read(name, text):
    normalizer = NORMALIZERS[name]
    normalized, origins = origins_of(normalizer, text)
    data, changed = text.encode(), normalized.encode()
    assert len(origins) == len(changed) + 1
    assert origins[-1] == len(data)
    exact = [origin for origin in origins if origin != INSIDE]
    assert exact == sorted(exact)
    for offset, origin in enumerate(origins):
        whole = data[:origin].decode(errors="ignore")
        rest = data[len(whole.encode()) : origin]
        if origin != INSIDE and (whole or not normalized.startswith("▁")):
            assert normalizer.normalize_str(whole).encode() + rest == changed[:offset]


@pytest.mark.parametrize("name", ["nfc", "nfkc", "lower", "accents", "spaces", "llama"])
def test_every_character_that_stays_alone_has_an_end(name):
    """Nothing is marked but the insides of what changed."""
    text = "a b cafe\u0301 d ½ e"
    _, origins = origins_of(NORMALIZERS[name], text)
    ends = {origin for origin in origins if origin != INSIDE}
    single = [len(text[:i].encode()) for i in range(len(text) + 1) if text[i : i + 1] != "\u0301"]
    assert ends >= set(single)


def test_stripped_and_prepended_text():
    strip = normalizers.Strip(left=True, right=True)
    assert origins_of(strip, "  ab ") == ("ab", [2, 3, 5])
    assert origins_of(strip, "   ") == ("", [3])
    assert origins_of(normalizers.Prepend("_"), "ab") == ("_ab", [0, 0, 1, 2])


def test_a_change_that_does_not_follow_from_pieces_is_read_as_a_whole():
    # The pattern looks behind, so a match by itself is no match.
    normalizer = normalizers.Replace(Regex("(?<=a)b"), "xyz")
    assert origins_of(normalizer, "ab c") == ("axyz c", [0, *[INSIDE] * 5, 4])


def test_replaced_and_deleted():
    changed, origins = replaced("a▁b", "▁", " ")
    assert (changed, origins.tolist()) == ("a b", [0, 1, 4, 5])
    kept, origins = without_bytes(b"\x04a\x04\x04b\x04", b"\x04\x06")
    assert (kept, origins.tolist()) == (b"ab", [1, 4, 6])
