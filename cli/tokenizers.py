"""The tokenizer that an option names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusestore.tokenizers.tokenizer import Tokenizer


def tokenizer_of(spec: str) -> Tokenizer:
    """The tokenizer of a model (folder, hub id, .gguf, package:NAME), or in a tokenizer's own file.

    A file is given by its path or as `package:NAME/PATH`.
    """
    from fusestore.models.loading import local_model_folder
    from fusestore.storage.packages import SCHEME, resolve_path
    from fusestore.tokenizers.tokenizer import load_tokenizer

    in_package = spec.startswith(SCHEME) and "/" in spec
    path = Path(resolve_path(spec) if in_package else spec).expanduser()
    if path.suffix != ".gguf" and (in_package or path.is_file()):
        return load_tokenizer(spec)
    return load_tokenizer(str(local_model_folder(spec)))
