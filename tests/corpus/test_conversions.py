"""Tokenizers of tiktoken, tekken and sentencepiece keep their ids and get right offsets."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError, MissingDependencyError
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers import conversions
from fusestore.tokenizers.sentencepiece_model import parse_sentencepiece
from fusestore.tokenizers.tokenizer import as_tokenizer, load_tokenizer
from tests.helpers.real_tokenizers import MISTRAL, encoding_of

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("  \t\n▁\u00a0\u3000\u0301\x00\x7f\x85🦜é한漢ﬁ①İß"),
        st.sampled_from("the government of United States 1790.'sS"),
    ),
    max_size=60,
)


def train(tmp_path, texts, **options):
    """A sentencepiece model of the texts; returns its file."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "trained"), minloglevel=2, **options
    )
    return tmp_path / "trained.model"


def check_round_trip(tokenizer, text, expected_ids):
    ids, ends = tokenizer.encode([text], add_bos=False).document(0)
    assert ids.tolist() == expected_ids
    pieces = [tokenizer.vocabulary.token_bytes[i] for i in ids]
    data = text.encode()
    joined = b"".join(pieces)
    if joined in (data, b" " + data):
        added = len(joined) - len(data)
        spelt = b""
        for piece, end in zip(pieces, ends.tolist(), strict=True):
            spelt += piece
            assert end == max(len(spelt) - added, 0)
            assert data[:end] == spelt[added:]


@pytest.fixture(scope="module")
def small_encoding():
    return encoding_of(3000)


@pytest.fixture(scope="module")
def from_tiktoken(small_encoding):
    return as_tokenizer(small_encoding)


@given(text=TEXT)
@hypothesis_settings(deadline=None, max_examples=200)
def test_a_tiktoken_encoding_round_trips(small_encoding, from_tiktoken, text):
    expected = small_encoding.encode_ordinary(text)
    check_round_trip(from_tiktoken, text, expected)
    # Byte pairs lose nothing: the tokens' bytes are the text, so every offset was checked.
    assert b"".join(from_tiktoken.vocabulary.token_bytes[i] for i in expected) == text.encode()


def test_a_tiktoken_vocabulary_with_holes(from_tiktoken):
    vocabulary = from_tiktoken.vocabulary
    assert len(from_tiktoken) == 3008
    assert vocabulary.kinds[2999:] == ("text", "special", *["unused"] * 6, "special")
    assert vocabulary.token_bytes[3007] == b"<|im_start|>"
    assert vocabulary.roles == (("eos", 3000),)
    assert (from_tiktoken.name, from_tiktoken.bos_id) == ("qwen", None)


@pytest.fixture(scope="module")
def mistral_v1():
    return load_tokenizer(MISTRAL + "tokenizer.model.v1")


@pytest.fixture(scope="module")
def mistral_processor():
    return sentencepiece.SentencePieceProcessor(
        model_file=resolve_path(MISTRAL + "tokenizer.model.v1")
    )


@given(text=TEXT)
@hypothesis_settings(deadline=None, max_examples=200)
def test_a_sentencepiece_file_round_trips(mistral_v1, mistral_processor, text):
    check_round_trip(mistral_v1, text, mistral_processor.encode(text))


def test_a_sentencepiece_file_on_real_text(mistral_v1, mistral_processor, mistral, speeches):
    for text in speeches[:3]:
        check_round_trip(mistral_v1, text, mistral_processor.encode(text))
        ids, ends = mistral.encode([text], add_bos=False).document(0)
        own_ids, own_ends = mistral_v1.encode([text], add_bos=False).document(0)
        assert (ids.tolist(), ends.tolist()) == (own_ids.tolist(), own_ends.tolist())
    assert mistral_v1.vocabulary.token_bytes == mistral.vocabulary.token_bytes
    assert mistral_v1.vocabulary.roles == (("bos", 1), ("eos", 2), ("unk", 0))
    assert not mistral_v1.adds_bos


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "byte_fallback": True},
        {"model_type": "bpe", "normalization_rule_name": "identity"},
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "user_defined_symbols": ["<sep>", "\n\n", "ing"],
        },
    ],
    ids=["unigram", "identity", "symbols"],
)
def test_trained_sentencepiece_models_convert_right_or_not_at_all(tmp_path, speeches, options):
    path = train(tmp_path, speeches[:3], vocab_size=700, **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    try:
        tokenizer = load_tokenizer(path)
    except IncompatibleError as error:
        assert "cannot be converted" in str(error)  # noqa: PT017
        return
    for text in (*speeches[:3], "a<sep>b\n\nsinging  ﬁ\u0301 x "):
        check_round_trip(tokenizer, text, processor.encode(text))


def test_a_conversion_that_gives_other_ids_is_refused(tmp_path, speeches, monkeypatch):
    path = train(tmp_path, speeches[:3], vocab_size=700, model_type="bpe")
    monkeypatch.setattr(conversions, "_sentencepiece_normalizer", lambda model: _no_normalizer())
    with pytest.raises(IncompatibleError, match=r"trained\.model.*differ from token 0 on"):
        load_tokenizer(path)


def _no_normalizer():
    from tokenizers import normalizers

    return normalizers.Sequence([])


def test_a_model_of_words_is_refused(tmp_path, speeches):
    path = train(tmp_path, speeches[:3], vocab_size=700, model_type="word", use_all_vocab=False)
    with pytest.raises(IncompatibleError, match="of type word"):
        load_tokenizer(path)


def test_what_a_model_file_says(tmp_path, speeches):
    path = train(
        tmp_path, speeches[:3], vocab_size=700, model_type="bpe", user_defined_symbols=["<sep>"]
    )
    model = parse_sentencepiece(path.read_bytes(), "x")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert [piece for piece, _ in model.pieces] == [processor.id_to_piece(i) for i in range(700)]
    assert [score for _, score in model.pieces] == [processor.get_score(i) for i in range(700)]
    assert model.user_defined == ("<sep>",)
    assert (model.model_type, model.byte_fallback) == ("bpe", False)
    assert model.charsmap
    assert model.adds_dummy_prefix
    assert model.removes_extra_spaces


@given(data=st.binary(max_size=200))
@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bytes_that_are_no_model_are_refused(data):
    try:
        parse_sentencepiece(data, "x")
    except InvalidInputError as error:
        assert "x is no sentencepiece model" in str(error)  # noqa: PT017


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    cut = tmp_path / "cut.model"
    cut.write_bytes(Path(resolve_path(MISTRAL + "tokenizer.model.v1")).read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match=r"cut\.model is no sentencepiece model"):
        load_tokenizer(cut)
    (tmp_path / "other.json").write_text('{"config": {}}')
    with pytest.raises(InvalidInputError, match=r"other\.json is no tekken file"):
        load_tokenizer(tmp_path / "other.json")
    (tmp_path / "ranks.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(InvalidInputError, match=r"not the pattern .* tiktoken\.Encoding"):
        load_tokenizer(tmp_path / "ranks.tiktoken")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(MissingDependencyError, match="pip install sentencepiece"):
        load_tokenizer(MISTRAL + "tokenizer.model.v1")


def test_tokenizer_json_means_its_folder(smollm2_tokenizer_path, smollm2, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_tokenizer_path / name, tmp_path / name)
    assert load_tokenizer(tmp_path / "tokenizer.json").digest == smollm2.digest


def test_a_small_tekken_file_round_trips(tmp_path):
    full = json.loads(Path(resolve_path(MISTRAL + "tekken_240911.json")).read_bytes())
    full["config"] |= {"default_vocab_size": 2100, "default_num_special_tokens": 100}
    full["vocab"] = full["vocab"][:2500]
    full["special_tokens"] = [{"rank": 3, "token_str": "[INST]", "is_control": True}]
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(full))
    tokenizer = load_tokenizer(path)
    assert len(tokenizer) == 2100
    assert tokenizer.vocabulary.roles == (("bos", 1), ("eos", 2), ("unk", 0))
    assert tokenizer.vocabulary.token_bytes[3] == b"[INST]"
    assert tokenizer.vocabulary.kinds[:101] == ("special",) * 100 + ("text",)
    ranks = {
        base64.b64decode(token["token_bytes"]): rank
        for rank, token in enumerate(full["vocab"][:2000])
    }
    original = tiktoken.Encoding(
        "x", pat_str=full["config"]["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    for text in ("the theory ab ab", "[INST]\n\n  naïve 東京 1790"):
        check_round_trip(tokenizer, text, [100 + i for i in original.encode_ordinary(text)])
    full["vocab"] = full["vocab"][:1500]
    path.write_text(json.dumps(full))
    with pytest.raises(InvalidInputError, match="1,500 tokens where 2,000 are announced"):
        load_tokenizer(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tekken_240911.json", "mistral_instruct_tokenizer_240323.model.v3"]
)
def test_whole_mistral_files_give_their_ids(name, speeches):
    tokenizer = load_tokenizer(MISTRAL + name)
    if name.endswith(".json"):
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        original = Tekkenizer.from_file(resolve_path(MISTRAL + name))
        expected = [original.encode(text, bos=False, eos=False) for text in speeches]
    else:
        processor = sentencepiece.SentencePieceProcessor(model_file=resolve_path(MISTRAL + name))
        expected = [processor.encode(text) for text in speeches]
    for text, ids in zip(speeches, expected, strict=True):
        check_round_trip(tokenizer, text, ids)


@pytest.mark.slow
def test_the_whole_qwen_encoding_gives_its_ids(speeches):
    encoding = encoding_of()
    tokenizer = as_tokenizer(encoding)
    for text in speeches:
        check_round_trip(tokenizer, text, encoding.encode_ordinary(text))
