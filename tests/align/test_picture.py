"""The picture in the documentation shows what fusestore does."""

from pathlib import Path

import pytest

from tools.alignment_picture import draw

PICTURE = Path(__file__).parents[2] / "docs/explanation/alignment.svg"


@pytest.mark.slow
def test_the_picture_of_an_alignment_is_a_real_one(tokenizers):
    assert PICTURE.read_text(encoding="utf-8") == draw(tokenizers["gemma3"], tokenizers["smollm2"])
