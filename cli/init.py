"""`fusestore init`: write a fusion.toml template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import output


def init(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="File to write. An existing file is never changed."),
    ] = Path("fusion.toml"),
) -> None:
    """Write a fusion.toml template with every setting and its default.

    A line `#KEY = VALUE` shows a default. To change the setting, remove the `#`.
    """
    from fusestore.workflows.template import write_template

    write_template(file)
    output.print(
        f"Wrote {file}. Name your text and your models in it, then: fusestore run {file}",
        markup=False,
        soft_wrap=True,
    )
