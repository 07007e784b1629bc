"""`AlignSettings`: methods of an alignment; the options of `fusestore align`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.store.presets import SettingsWithPresets

TokenMethod = Annotated[
    AlignmentMethod,
    Field(
        description="How target tokens are paired with source tokens. span: equal end offsets; a "
        "target token that ends inside a source token is paired with the token before that. exact: "
        "equal start and end offsets. mined: minimum edit distance. anchored: mined, with tokens "
        "that cover the same bytes fixed. hybrid: span, and mined in the gaps.",
        json_schema_extra={"panel": "Alignments", "names": ["--method"]},
    ),
]
"""The method of a token alignment; a recipe names it too."""

VocabularyMethod = Annotated[
    MapMethod,
    Field(
        description="How source token ids are mapped to target token ids. exact: equal text. "
        "mined: nearest text by edit distance. prefix: longest target token that the text begins "
        "with. statistical: target token that most often begins at the same byte.",
        json_schema_extra={"panel": "Alignments", "names": ["--vocabulary"]},
    ),
]
"""The method of a vocabulary map; a recipe names it too."""

DEFAULT_METHOD: AlignmentMethod = "span"
DEFAULT_VOCABULARY: MapMethod = "prefix"


class AlignSettings(SettingsWithPresets):
    """How a source's tokens and vocabulary are aligned to the target's."""

    PRESETS: ClassVar = {"fusellm": {"method": "mined", "vocabulary": "mined"}}

    method: TokenMethod = DEFAULT_METHOD
    vocabulary: VocabularyMethod = DEFAULT_VOCABULARY


def alignment_name(cache: str, target: str) -> str:
    """The default name of an alignment."""
    return f"{cache}--{target}"
