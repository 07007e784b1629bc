"""Writes a model as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_SHARD_SIZE = "2GB"


def save_model(model: Any, folder: Path) -> None:  # noqa: ANN401 - transformers is untyped
    """Write weights and configuration with `save_pretrained`, in files of at most 2 GB."""
    with _deepspeed_not_imported():
        model.save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)


@contextlib.contextmanager
def _deepspeed_not_imported() -> Iterator[None]:
    """Keep `save_pretrained` from importing DeepSpeed in a process that does not use it.

    accelerate imports an installed DeepSpeed to find out whether its engine wraps the model. That
    takes seconds, starts a compiler, and logs a warning on machines without an accelerator.
    """
    from accelerate.utils import other

    if "deepspeed" in sys.modules:
        yield
        return
    is_available = other.is_deepspeed_available
    other.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        other.is_deepspeed_available = is_available
