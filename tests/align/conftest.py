"""Of the real models, tests of this folder read the tokenizers."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_path(smollm2_tokenizer_path: Path) -> Path:
    """SmolLM2's tokenizer as a Hugging Face folder."""
    return smollm2_tokenizer_path


@pytest.fixture(scope="session")
def gemma3_path(gemma3_tokenizer_path: Path) -> Path:
    """Gemma's tokenizer as a Hugging Face folder."""
    return gemma3_tokenizer_path
