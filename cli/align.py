"""`fusestore align`: align a cache to a target's tokenizer, or show how a text aligns."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.align.settings import AlignSettings
from fusestore.workflows.executors.settings import ExecutorSettings

from .console import ConsoleReporter, output, print_json, print_view
from .early_checks import check_artifacts, check_models
from .executors import hand_out
from .options import MODEL_FORMS, STORE_HELP, JsonOption, StorageOption, open_store
from .settings_options import settings_options

_UNMATCHED_IN_JSON = 50
_SHOW = "Show without writing"


@settings_options(AlignSettings)
@settings_options(ExecutorSettings, parameter="executor_settings")
def align(
    settings: AlignSettings,
    executor_settings: ExecutorSettings,
    cache: Annotated[
        str | None,
        typer.Argument(
            metavar="CACHE",
            help="Name of the source's distribution cache; left out with --text.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", "-s", metavar="STORE", help=f"{STORE_HELP} Not needed with --text."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="MODEL",
            help=f"Target model: {MODEL_FORMS}; also a tokenizer file or a tokenizer's digest.",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the corpus that is aligned. By default the cache's corpus.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="NAME",
            help="Alignment name. By default CACHE--TARGET.",
            show_default=False,
        ),
    ] = None,
    inspect: Annotated[
        str | None,
        typer.Option(
            metavar="DOCUMENT",
            help="Show this document of a finished alignment: its index in the corpus, its source "
            "document's NAME, or NAME#SEGMENT.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Show how the tokens that --source and --target have of this text align.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Source model of --text, in the same forms as --target.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    around: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Target position to show in the middle. By default the first tokens are shown.",
            rich_help_panel=_SHOW,
        ),
    ] = None,
    width: Annotated[
        int, typer.Option(min=1, help="Number of target tokens to show.", rich_help_panel=_SHOW)
    ] = 60,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Align a source's vocabulary and tokens to the target's.

    With --inspect or --text nothing is written; the two tokenizations of one text are shown.
    """
    if executor_settings.name is not None and (text is not None or inspect is not None):
        raise typer.BadParameter(
            "--text and --inspect write no shards to share", param_hint="--executor"
        )
    if text is not None:
        check_models([source, target])
        from fusestore.align.report.inspection import text_alignment
        from fusestore.models.target import Target

        from .alignments import print_document

        opened = None if store is None else open_store(store, storage_option)
        left = Target.open(_needed(source, "--source"), store=opened).tokenizer
        right = Target.open(_needed(target, "--target"), store=opened).tokenizer
        document = text_alignment(text, left, right, settings.method)
        print_document(document, around, width, as_json=as_json)
        return
    opened = open_store(_needed(store, "--store"), storage_option)
    cache = _needed(cache, "CACHE")
    if inspect is None or name is None:
        _needed(target, "--target" if inspect is None else "--target or --name")
    check_artifacts(opened, "cache", [cache])
    check_artifacts(opened, "corpus", [corpus])
    check_models([target])
    if inspect is not None:
        check_artifacts(opened, "alignment", [name])
        from fusestore.align.report.inspection import stored_alignment
        from fusestore.align.settings import alignment_name
        from fusestore.models.target import Target

        from .alignments import print_document

        if name is None:
            target_tokenizer = Target.open(_needed(target, "--target or --name"), store=opened)
            name = alignment_name(cache, target_tokenizer.name)
        document = stored_alignment(opened, cache, name, inspect)
        print_document(document, around, width, as_json=as_json)
        return
    by_workers = False
    if executor_settings.name is not None:
        from fusestore.align.settings import alignment_name
        from fusestore.models.target import Target

        target_name = Target.open(_needed(target, "--target"), store=opened).name
        folder = opened.alignment(name or alignment_name(cache, target_name))
        by_workers = hand_out(executor_settings, "alignment", folder)
    from fusestore.align.report.overview import AlignedCache, alignment_summary, alignment_view
    from fusestore.align.run import align as align_cache

    target = _needed(target, "--target")
    result = align_cache(
        opened, cache, target, settings, name=name, corpus=corpus, reporter=ConsoleReporter()
    )
    alignment, created = result.artifact, by_workers or result.created
    if as_json:
        summary = alignment_summary(alignment, _UNMATCHED_IN_JSON)
        print_json(
            AlignedCache(
                cache=cache,
                alignment=alignment.location.name,
                built=created,
                **dict(summary),
            )
        )
        return
    shares = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in alignment.coverage.items())
    verb = "Aligned" if created else "Already there:"
    output.print(f"{verb} {alignment.location.name}: {shares}")
    print_view(alignment_view(alignment))


def _needed(value: str | None, hint: str) -> str:
    if value is None:
        raise typer.BadParameter("is missing", param_hint=hint)
    return value
