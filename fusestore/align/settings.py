"""What can be chosen when a source is aligned to a target."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.store.manifest import Frozen

TokenMethod = Annotated[
    AlignmentMethod,
    Field(
        description="How target tokens are paired with source tokens. span: equal end offsets; "
        "exact: equal "
        "start and end offsets; mined: minimum edit distance; anchored: mined, through the tokens "
        "that cover the same bytes; hybrid: span, and mined in the gaps between.",
        json_schema_extra={"panel": "Alignments", "names": ["--method"]},
    ),
]
"""The method of a token alignment; a recipe names it too."""

VocabularyMethod = Annotated[
    MapMethod,
    Field(
        description="How source token ids are mapped to target token ids. exact: equal text; "
        "mined: nearest text by edit distance; prefix: first target token of the text; "
        "statistical: tokens that begin together in the corpus.",
        json_schema_extra={"panel": "Alignments", "names": ["--vocabulary"]},
    ),
]
"""The method of a vocabulary map; a recipe names it too."""

DEFAULT_METHOD: AlignmentMethod = "hybrid"
DEFAULT_VOCABULARY: MapMethod = "mined"


class AlignSettings(Frozen):
    """How a source's tokens and vocabulary are aligned to the target's."""

    method: TokenMethod = DEFAULT_METHOD
    vocabulary: VocabularyMethod = DEFAULT_VOCABULARY
