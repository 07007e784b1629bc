"""Conversions of packaged models, which take longer than the tests that read them."""

import os
from pathlib import Path


def at_hand(*folders: Path) -> None:
    """Put converted models where this test's own home has them.

    Args:
        folders: of `smollm2_path` and `gemma3_path`, which are made before a test has its own home.
    """
    models = Path(os.environ["FUSESTORE_HOME"]) / "models"
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in folders:
        (models / folder.name).symlink_to(folder)
