"""`fusestore verify`: find every damaged byte of a store, and repair it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.capture.settings import CaptureSettings
from fusestore.workflows.executors.settings import ExecutorSettings

from .console import ConsoleReporter, output, print_json
from .executors import verify_by_executor
from .options import MODEL_FORMS, JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options

if TYPE_CHECKING:
    from fusestore.store.layout import Store
    from fusestore.workflows.verification import VerifiedArtifact


_REPAIR = "Repair"
_MODEL_SETTINGS = {
    *("device", "batch_size", "attention", "trust_remote_code"),
    *("server", "requests_per_server", "request_timeout", "retry_seconds"),
}


@settings_options(ExecutorSettings, parameter="executor_settings")
@settings_options(
    CaptureSettings, panel=_REPAIR, skip=set(CaptureSettings.model_fields) - _MODEL_SETTINGS
)
def verify(
    *,
    store: StoreOption,
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND/NAME",
            help="Artifact, as `fusestore ls` lists it, such as cache/smollm2. By default all.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Check only manifests, receipts and sizes; read no data."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild what is damaged, and nothing else, from what it was made from.",
            rich_help_panel=_REPAIR,
        ),
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL ...",
            help=f"Model of a damaged cache, or of damaged tokens: {MODEL_FORMS}.",
            rich_help_panel=_REPAIR,
        ),
    ] = None,
    settings: CaptureSettings,
    executor_settings: ExecutorSettings,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Check only this process's share of the artifacts, by the rank and world size in "
            "the environment: what each worker of --executor does.",
            rich_help_panel="Several processes",
        ),
    ] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check checksums, sizes and values; repair what is damaged.

    Inputs that are gone are named. Exits with 1 if a problem remains, or if an artifact lacks an
    input without which it cannot be used; a complete one rarely needs its inputs.
    """
    if repair and quick:
        raise typer.BadParameter("--repair reads everything; leave out --quick")
    if repair and (share or executor_settings.name is not None):
        raise typer.BadParameter("--repair runs in one process; leave out --executor")
    opened = open_store(store, storage_option)
    if repair:
        sys.exit(_repair(opened, artifact, model or [], settings, as_json))
    sys.exit(_verify(opened, artifact, quick, as_json, share, executor_settings))


def _verify(
    store: Store,
    path: str | None,
    quick: bool,
    as_json: bool,
    is_share: bool,
    executor_settings: ExecutorSettings,
) -> int:
    from fusestore.process_rank import process_rank
    from fusestore.workflows.verification import WHOLE, verify_inputs_too

    if executor_settings.name is None:
        share = process_rank() if is_share else WHOLE
        verified = verify_inputs_too(store, path, quick=quick, share=share)
    else:
        verified = verify_by_executor(store, path, quick, executor_settings)
    if as_json:
        print_json(verified)
    else:
        for artifact in verified.artifacts:
            _print(artifact)
    return int(not all(artifact.sound for artifact in verified.artifacts))


def _print(artifact: VerifiedArtifact) -> None:
    count = len(artifact.findings)
    state = f"{count} problem(s)" if count else "sound" if artifact.sound else "cannot be used"
    output.print(f"{artifact.artifact}: {state}")
    for finding in artifact.findings:
        output.print(f"  {finding.file}: {finding.problem}")
        output.print(f"    to repair: {finding.remedy}")
    for missing in artifact.missing_inputs:
        needed = missing.needed or not artifact.sound
        use = "which it needs" if needed else "without which it can be used, but not repaired"
        output.print(
            f"  input {str(missing).removesuffix(' (missing)')} is not in the store any more, {use}"
        )


def _repair(
    store: Store, path: str | None, models: list[str], settings: CaptureSettings, as_json: bool
) -> int:
    from fusestore.workflows.repair import repair_store, repairs_report

    repairs = repair_store(
        store, path, models=models, settings=settings, reporter=ConsoleReporter()
    )
    if as_json:
        print_json(repairs_report(store, repairs))
    else:
        for name, done in repairs.items():
            for finding in done.findings:
                output.print(f"{name}: {finding.file}: {finding.problem}", markup=False)
            result = "repaired" if done.problem is None else f"not repaired: {done.problem}"
            output.print(f"{name}: {result}", markup=False)
        if not repairs:
            output.print("Everything is sound.")
    return int(any(done.problem is not None for done in repairs.values()))
