"""Of the real models, tests of this folder read the tokenizers, each when it is asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer
from tests.helpers.real_tokenizers import MISTRAL, deepseek_tokenizer, encoding_of, real_tokenizer
from tests.helpers.tiny_models import SCRIPTS, train_unigram, train_word_piece


class MadeByName(dict[str, Tokenizer]):
    """Tokenizers by name, each made when it is first asked for."""

    def __init__(self, makers: dict[str, Callable[[], Tokenizer]]) -> None:
        super().__init__()
        self._makers = makers

    def __missing__(self, name: str) -> Tokenizer:
        self[name] = self._makers[name]()
        return self[name]


@pytest.fixture(scope="session")
def smollm2_path(smollm2_tokenizer_path: Path) -> Path:
    """SmolLM2's tokenizer as a Hugging Face folder."""
    return smollm2_tokenizer_path


@pytest.fixture(scope="session")
def tokenizers(request: pytest.FixtureRequest) -> MadeByName:
    """Of seven families, by name."""

    def of_model(name: str) -> Tokenizer:
        return real_tokenizer(request.getfixturevalue(f"{name}_tokenizer_path"))

    return MadeByName(
        {
            "smollm2": lambda: of_model("smollm2"),
            "gemma3": lambda: of_model("gemma3"),
            "deepseek": deepseek_tokenizer,
            "mistral": lambda: real_tokenizer(MISTRAL + "tokenizer.model.v1"),
            "qwen": lambda: as_tokenizer(encoding_of()),
            "word_piece": lambda: as_tokenizer(train_word_piece(SCRIPTS, 200)),
            "unigram": lambda: as_tokenizer(train_unigram(SCRIPTS, 200)),
        }
    )
