"""`fusestore distill`: one teacher, one student, one command."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import output, print_json
from .options import JsonOption, StorageOption
from .run import run

_FORMS = "a folder, hub id, .gguf file, or package:NAME"


def distill(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help=f"Model to learn from: {_FORMS}.")
    ],
    student: Annotated[
        str,
        typer.Argument(metavar="STUDENT", help=f"Model to train, with any tokenizer: {_FORMS}."),
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Text: files, shell patterns, folders or URLs; `fusestore corpus --help` lists "
            "all forms.",
        ),
    ],
    store: Annotated[
        str,
        typer.Option(
            "--store",
            "-s",
            metavar="STORE",
            help="Store of everything that is made: a folder, or a URL such as s3://bucket/x.",
        ),
    ] = "distill.store",
    file: Annotated[
        str,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="The fusion.toml that is written, and run. Change it to change any setting, and "
            "go on with `fusestore run`.",
        ),
    ] = "distill.toml",
    held_out_fraction: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.5,
            help="Share of the documents on which the student is scored, before and after. 0: it "
            "is not scored.",
        ),
    ] = 0.05,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only write the fusion.toml; run nothing.")
    ] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distill one model into another: write a fusion.toml and run it.

    The same command continues an interrupted run.
    """
    from fusestore.workflows.distillation import WrittenFusion, distillation_toml, write_once

    write_once(file, distillation_toml(teacher, student, data, store, held_out_fraction))
    if not as_json:
        output.print(f"fusion.toml: {file}", markup=False, soft_wrap=True)
    elif dry_run:
        print_json(WrittenFusion(file=file))
    if not dry_run:
        run(file, storage_option=storage_option, as_json=as_json)
