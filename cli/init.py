"""`fusestore init`: write a fusion.toml to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import output


def init(
    file: Annotated[
        Path, typer.Argument(help="File to write; a file that is there is left as it is.")
    ] = Path("fusion.toml"),
) -> None:
    """Write a fusion.toml to start from, with every setting and its default.

    Lines that begin with `#KEY =` are settings at their defaults: remove the `#` to change one.
    """
    from fusestore.workflows.template import write_template

    write_template(file)
    output.print(
        f"Wrote {file}. Name your text and your models in it, then: fusestore run {file}",
        markup=False,
        soft_wrap=True,
    )
