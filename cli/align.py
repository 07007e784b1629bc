"""`fusestore align`: align a cache to a target's tokenizer, or show how a document aligns."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.align.settings import AlignSettings

from .console import ConsoleReporter, output, print_json, print_view
from .options import JsonOption, StorageOption, storage_options
from .settings_options import settings_options

_UNMATCHED_IN_JSON = 50
_LOOK = "Look only"


@settings_options(AlignSettings)
def align(
    settings: AlignSettings,
    cache: Annotated[
        str | None,
        typer.Argument(help="Name of the source's cache; none with --text.", show_default=False),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", "-s", help="The store: a folder, or a URL such as s3://bucket/x."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="The target: a name that the store knows, a model (folder, hub id, .gguf, "
            "package:NAME), a tokenizer's digest, or a tokenizer file.",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Name of the corpus that the target reads. Default: the cache's corpus.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="Name of the alignment. Default: CACHE--TARGET, with the target's name.",
            show_default=False,
        ),
    ] = None,
    inspect: Annotated[
        str | None,
        typer.Option(
            metavar="DOC",
            help="Show a document of a finished alignment: its index, NAME, or NAME#SEGMENT.",
            rich_help_panel=_LOOK,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Show how this text aligns from --source to --target.", rich_help_panel=_LOOK
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Source model of --text, named as --target is.", rich_help_panel=_LOOK),
    ] = None,
    around: Annotated[
        int | None,
        typer.Option(min=0, help="Show target positions around this one.", rich_help_panel=_LOOK),
    ] = None,
    width: Annotated[
        int, typer.Option(min=1, help="Number of target tokens to show.", rich_help_panel=_LOOK)
    ] = 60,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Map a source's vocabulary to the target's and align their tokens.

    With --inspect or --text nothing is written: two tokenizations are shown above each other.
    """
    from fusestore.models.target import Target
    from fusestore.store.layout import Store

    if text is not None:
        from fusestore.align.report.inspection import text_alignment

        from .alignments import print_document

        opened = None if store is None else Store.open(store, storage_options(storage_option))
        left = Target.open(_needed(source, "--source"), store=opened).tokenizer
        right = Target.open(_needed(target, "--target"), store=opened).tokenizer
        document = text_alignment(text, left, right, settings.method)
        print_document(document, around, width, as_json=as_json)
        return
    opened = Store.open(_needed(store, "--store"), storage_options(storage_option))
    cache = _needed(cache, "CACHE")
    if inspect is not None:
        from fusestore.align.report.inspection import stored_alignment
        from fusestore.align.run import alignment_name

        from .alignments import print_document

        if name is None:
            known = Target.open(_needed(target, "--target or --name"), store=opened)
            name = alignment_name(cache, known.name)
        document = stored_alignment(opened, cache, name, inspect)
        print_document(document, around, width, as_json=as_json)
        return
    from fusestore.align.report.overview import alignment_summary, alignment_view
    from fusestore.align.run import align as align_cache

    target = _needed(target, "--target")
    result = align_cache(
        opened, cache, target, settings, name=name, corpus=corpus, reporter=ConsoleReporter()
    )
    alignment = result.artifact
    if as_json:
        summary = alignment_summary(alignment, _UNMATCHED_IN_JSON)
        print_json(
            {
                "cache": cache,
                "alignment": alignment.location.name,
                "built": result.created,
                **summary,
            }
        )
        return
    shares = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in alignment.coverage.items())
    verb = "Aligned" if result.created else "Already there:"
    output.print(f"{verb} {alignment.location.name}: {shares}")
    print_view(alignment_view(alignment))


def _needed(value: str | None, hint: str) -> str:
    if value is None:
        raise typer.BadParameter("is missing", param_hint=hint)
    return value
