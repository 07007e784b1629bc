"""A folder's tokenizer.json is what its model was trained with, whatever class the folder names."""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from fusestore.tokenizers.remembered import folder_tokenizer
from fusestore.tokenizers.tokenizer import load_tokenizer
from tests.helpers.difficult_texts import difficult_texts
from tests.helpers.tiny_models import (
    SCRIPTS,
    train_byte_fallback,
    train_tokenizer,
    train_word_piece,
)


def digits_alone(tokenizer):
    """The tokenizer with another pre-tokenizer than its class has."""
    splits = [
        pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


def composed(tokenizer):
    """The tokenizer behind a normalizer that its class does not have."""
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


CASES = {
    "GPT2Tokenizer": lambda: digits_alone(train_tokenizer(SCRIPTS, 500)),
    "GPT2TokenizerFast": lambda: composed(train_tokenizer(SCRIPTS, 500)),
    "Qwen2Tokenizer": lambda: digits_alone(train_tokenizer(SCRIPTS, 500)),
    "LlamaTokenizer": lambda: train_byte_fallback(SCRIPTS, 400),
    "LlamaTokenizerFast": lambda: digits_alone(train_tokenizer(SCRIPTS, 500, adds_bos=True)),
    "BertTokenizer": lambda: composed(train_word_piece(SCRIPTS, 200)),
    "PreTrainedTokenizerFast": lambda: composed(train_tokenizer(SCRIPTS, 500)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_class_that_a_folder_names_does_not_change_its_tokens(name, tmp_path):
    CASES[name]().save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "tokenizer_class": name}))
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    first = own.encode("a").ids[0]
    own.encode_special_tokens = True
    loaded = load_tokenizer(tmp_path)
    for text in difficult_texts():
        expected = own.encode(text, add_special_tokens=False).ids
        assert loaded.encode([text], add_bos=False).token_ids.tolist() == expected, text
    assert loaded.adds_bos is (first == loaded.bos_id)
    assert folder_tokenizer(tmp_path).digest == loaded.digest
