"""Token bytes, end offsets and digests of real tokenizers of every family."""

# ruff: noqa: S105, S106 - the tokens of a tokenizer are not passwords

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.tokenizers.end_offsets import byte_offsets_of_characters, converted_end_offsets
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer, load_tokenizer
from tests.helpers.real_tokenizers import gemma_is_slow

ODD_TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("  \t\n▁\u00a0\u3000\u200d\u0301\ufe0f\u2028\x00\x7f🦜👩🏽é한글漢字ﬁ①İß"),
        st.sampled_from("the government of United States 1790."),
    ),
    max_size=60,
)


def brute_force_ends(tokenizer: Tokenizer, ids, text: str) -> list[int] | None:
    """End offsets by adding token lengths, where the tokens spell the text; else None."""
    pieces = [tokenizer.vocabulary.token_bytes[i] for i in ids]
    data = text.encode()
    joined = b"".join(pieces)
    if joined not in (data, b" " + data):
        return None
    position = -1 if joined != data else 0
    ends = []
    for piece in pieces:
        position += len(piece)
        ends.append(max(position, 0))
    return ends


@given(texts=st.lists(ODD_TEXT, max_size=4), add_bos=st.booleans())
@hypothesis_settings(deadline=None, max_examples=40)
def test_end_offsets_rise_within_the_text_and_equal_brute_force(any_tokenizer, texts, add_bos):
    add_bos = add_bos and any_tokenizer.bos_id is not None
    table = any_tokenizer.encode(texts, add_bos)
    assert table.num_documents == len(texts)
    assert table.token_ids.dtype == table.end_offsets.dtype == np.int32
    for index, text in enumerate(texts):
        ids, ends = table.document(index)
        if add_bos:
            assert (ids[0], ends[0]) == (any_tokenizer.bos_id, 0)
            ids, ends = ids[1:], ends[1:]
        assert np.all(np.diff(ends, prepend=0) >= 0)
        assert np.all(ends <= len(text.encode()))
        plain = any_tokenizer._backend.encode(text, add_special_tokens=False)
        assert ids.tolist() == plain.ids
        expected = brute_force_ends(any_tokenizer, ids, text)
        if expected is not None:
            assert ends.tolist() == expected


@pytest.mark.parametrize("name", gemma_is_slow(["smollm2", "gemma", "deepseek", "mistral"]))
@given(text=ODD_TEXT)
@hypothesis_settings(deadline=None, max_examples=40)
def test_offsets_converted_from_spans_equal_running_lengths(name, text, request):
    tokenizer = request.getfixturevalue(name)
    encoding = tokenizer._backend.encode(text, add_special_tokens=False)
    expected = brute_force_ends(tokenizer, encoding.ids, text)
    if expected is None:
        return
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    lengths = np.array([len(tokenizer.vocabulary.token_bytes[i]) for i in encoding.ids], np.int64)
    assert converted_end_offsets(spans, lengths, text).tolist() == expected


@given(text=ODD_TEXT)
def test_byte_offsets_of_characters(text):
    expected = [len(text[:count].encode()) for count in range(len(text) + 1)]
    assert byte_offsets_of_characters(text).tolist() == expected


def test_real_text_is_spelt_by_its_tokens(any_tokenizer, speeches):
    text = speeches[0]
    ids, ends = any_tokenizer.encode([text], add_bos=False).document(0)
    data = text.encode()
    previous = 0
    for token_id, end in zip(ids, ends, strict=True):
        piece = any_tokenizer.vocabulary.token_bytes[token_id]
        if any_tokenizer.vocabulary.kinds[token_id] != "special":
            covered = data[previous:end].decode().lower()
            # A first token may carry a space that the text does not have; WordPiece has none.
            assert covered.strip() == piece.decode().lower().strip()
        previous = end
    assert data[previous:].strip() == b""


@given(words=st.lists(st.text("abcstuvÀÉñüDÕ", min_size=1, max_size=12), max_size=8))
@hypothesis_settings(deadline=None, max_examples=100)
def test_each_token_of_normalised_text_ends_with_the_letters_it_stands_for(wordpiece, words):
    text = " \x00\n".join(words)
    data = text.encode()
    ids, ends = wordpiece.encode([text], add_bos=False).document(0)
    previous = 0
    for token_id, end in zip(ids, ends, strict=True):
        letters = unicodedata.normalize("NFD", data[previous:end].decode().lower())
        plain = "".join(c for c in letters if c.isalpha())
        if wordpiece.vocabulary.kinds[token_id] == "text":
            assert plain.encode() == wordpiece.vocabulary.token_bytes[token_id]
        previous = end
    assert previous == len(data)


def test_characters_split_over_tokens_end_inside(smollm2):
    ids, ends = smollm2.encode(["🦜"], add_bos=False).document(0)
    assert len(ids) == 3
    assert ends.tolist()[-1] == 4
    assert all(0 < end < 4 for end in ends[:-1])


def test_normalised_text_ends_where_the_original_does(wordpiece, unigram):
    text = "É\x00tat, the ﬁnal 漢"
    ids, ends = wordpiece.encode([text], add_bos=False).document(0)
    assert ends[-1] == len(text.encode())
    assert wordpiece.vocabulary.kinds[ids[-1]] == "special"
    assert wordpiece.vocabulary.role("unk") == ids[-1]
    _, ends = unigram.encode([text], add_bos=False).document(0)
    assert ends[-1] == len(text.encode())


def bytes_of(tokenizer, token):
    token_id = tokenizer._backend.token_to_id(token)
    return tokenizer.vocabulary.token_bytes[token_id], tokenizer.vocabulary.kinds[token_id]


@pytest.mark.slow
def test_gemmas_vocabulary_follows_its_convention(gemma):
    assert bytes_of(gemma, "▁the") == (b" the", "text")
    assert bytes_of(gemma, "\n\n") == (b"\n\n", "text")
    assert bytes_of(gemma, "<0xF0>") == (b"\xf0", "byte")
    assert gemma.vocabulary.role("bos") == gemma.bos_id == 2
    assert gemma.adds_bos


def test_vocabularies_follow_their_convention(smollm2, mistral, unigram, wordpiece):
    assert bytes_of(smollm2, "Ġthe") == (b" the", "text")
    assert bytes_of(smollm2, "Ċ") == (b"\n", "text")
    assert bytes_of(smollm2, "<|im_end|>") == (b"<|im_end|>", "special")
    assert bytes_of(mistral, "▁the") == (b" the", "text")
    assert bytes_of(mistral, "<0x0A>") == (b"\n", "byte")
    assert bytes_of(unigram, "▁the") == (b" the", "text")
    assert bytes_of(wordpiece, "the") == (b"the", "text")
    assert bytes_of(wordpiece, "##s") == (b"s", "text")
    assert mistral.vocabulary.role("bos") == mistral.bos_id == 1
    assert not any(each.adds_bos for each in (mistral, smollm2, wordpiece))
    assert smollm2.vocabulary.role("pad") == smollm2.vocabulary.role("eos")


def test_ids_without_a_token_are_unused(wordpiece):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"[UNK]": 0, "a": 1, "b": 5}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), "holes")
    assert len(tokenizer) == 6
    assert tokenizer.vocabulary.kinds == ("special", "text", "unused", "unused", "unused", "text")
    assert tokenizer.vocabulary.role("unk") == 0


@pytest.mark.parametrize(
    ("name", "text"),
    gemma_is_slow([("smollm2", "a<|im_end|>b"), ("mistral", "a</s>b"), ("gemma", "a<eos>b")]),
)
def test_special_tokens_in_text_are_text(name, text, request):
    tokenizer = request.getfixturevalue(name)
    ids, ends = tokenizer.encode([text], add_bos=False).document(0)
    assert all(tokenizer.vocabulary.kinds[i] == "text" for i in ids)
    assert ends[-1] == len(text)


def test_digest_survives_saving_and_tells_tokenizers_apart(
    smollm2_tokenizer_path, smollm2, unigram, wordpiece, tmp_path
):
    from transformers import AutoTokenizer

    hugging_face = AutoTokenizer.from_pretrained(smollm2_tokenizer_path)
    hugging_face.save_pretrained(tmp_path)
    reloaded = load_tokenizer(tmp_path)
    assert reloaded.digest == smollm2.digest
    hugging_face.backend_tokenizer.enable_truncation(5)
    hugging_face.backend_tokenizer.enable_padding()
    assert as_tokenizer(hugging_face).digest == smollm2.digest
    assert len({smollm2.digest, unigram.digest, wordpiece.digest}) == 3
    hugging_face.eos_token = "<|endoftext|>"
    assert as_tokenizer(hugging_face).digest != smollm2.digest


def test_a_wrapped_tokenizer_is_left_as_it_was(smollm2_tokenizer_path, speeches):
    from transformers import AutoTokenizer

    hugging_face = AutoTokenizer.from_pretrained(smollm2_tokenizer_path)
    before = json.loads(hugging_face.backend_tokenizer.to_str())
    tokenizer = as_tokenizer(hugging_face)
    tokenizer.encode(["<|im_end|>"], add_bos=True)
    assert as_tokenizer(tokenizer) is tokenizer
    assert json.loads(hugging_face.backend_tokenizer.to_str()) == before
    assert hugging_face("<|im_end|>")["input_ids"] == [2]
    expected = hugging_face(speeches[1], add_special_tokens=False)["input_ids"]
    assert tokenizer.encode([speeches[1]], add_bos=False).token_ids.tolist() == expected


def test_bad_input_is_named(wordpiece, smollm2, tmp_path):
    with pytest.raises(IncompatibleError, match="'wordpiece' has no BOS"):
        wordpiece.encode(["a"], add_bos=True)
    with pytest.raises(InvalidInputError, match=r"Character 1 .* U\+D800"):
        smollm2.encode(["a\ud800"], add_bos=False)
    with pytest.raises(NotFoundError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="no such file or folder"):
        load_tokenizer("absent.gguf")
    (tmp_path / "file.bin").write_text("{}")
    with pytest.raises(InvalidInputError, match=r"is a file, but no \.gguf"):
        load_tokenizer(tmp_path / "file.bin")
    with pytest.raises(NotFoundError, match="No tokenizer could be loaded"):
        load_tokenizer("nobody/absent")
    with pytest.raises(NotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(IncompatibleError, match="could not be loaded by transformers"):
        load_tokenizer(tmp_path)


def test_a_slow_tokenizer_is_refused():
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

    with pytest.raises(IncompatibleError, match="slow"):
        Tokenizer(ByT5Tokenizer())


def test_no_texts(smollm2):
    table = smollm2.encode([], add_bos=True)
    assert (table.num_documents, table.num_tokens) == (0, 0)
