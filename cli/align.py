"""`fusestore align`: align a cache to a target tokenizer, or look at how a document aligns."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, storage_options

_UNMATCHED_IN_JSON = 50


def align(
    cache: Annotated[
        str | None, typer.Argument(help="Name of the cache; none with --text.")
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
            help="Target model: folder, hub id, .gguf, package:NAME; or a tokenizer file.",
        ),
    ] = None,
    target_name: Annotated[str, typer.Option(help="What the target is called.")] = "target",
    method: Annotated[str, typer.Option(help="hybrid, span, mined, anchored or exact.")] = "hybrid",
    vocabulary: Annotated[str, typer.Option(help="mined, exact, prefix or statistical.")] = "mined",
    corpus: Annotated[
        str | None, typer.Option(help="Corpus the target reads; default: the cache's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Default: CACHE--TARGET_NAME.")
    ] = None,
    inspect: Annotated[
        str | None,
        typer.Option(
            metavar="DOC",
            help="Show a document of a finished alignment: index, or NAME or NAME#SEGMENT.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Show how this text aligns from --source to --target.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --text: source model, given as --target is.")
    ] = None,
    around: Annotated[
        int | None, typer.Option(min=0, help="Show target positions around this one.")
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Target tokens to show.")] = 60,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Map a source's vocabulary to the target's and align their tokens.

    With --inspect or --text nothing is written: two tokenizations are shown above each other.
    """
    from fusestore.models.target import open_tokenizer
    from fusestore.store.layout import Store
    from fusestore.store.settings_file import parse_settings
    from fusestore.workflows.fusion_config import AlignConfig

    config = parse_settings(
        AlignConfig, {"method": method, "vocabulary": vocabulary}, "The command line"
    )
    if text is not None:
        from fusestore.align.report.inspection import text_alignment

        from .alignments import print_document

        left = open_tokenizer(_needed(source, "--source"))
        right = open_tokenizer(_needed(target, "--target"))
        document = text_alignment(text, left, right, config.method)
        print_document(document, around, width, as_json=as_json)
        return
    where = Store.open(_needed(store, "--store"), storage_options(storage_option))
    cache = _needed(cache, "CACHE")
    if inspect is not None:
        from fusestore.align.report.inspection import stored_alignment
        from fusestore.align.run import alignment_name

        from .alignments import print_document

        document = stored_alignment(
            where, cache, name or alignment_name(cache, target_name), inspect
        )
        print_document(document, around, width, as_json=as_json)
        return
    from fusestore.align.run import align_cache

    from .alignments import alignment_summary, print_alignment

    result, built = align_cache(
        where,
        cache,
        open_tokenizer(_needed(target, "--target")),
        target_name,
        method=config.method,
        vocabulary=config.vocabulary,
        corpus_name=corpus,
        name=name,
        reporter=ConsoleReporter(),
    )
    if as_json:
        summary = alignment_summary(result.alignment, _UNMATCHED_IN_JSON)
        print_json({"cache": cache, "built": built, **summary})
        return
    coverage = result.alignment.coverage
    shares = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in coverage.items())
    output.print(f"{'Aligned' if built else 'Already there:'} {cache} to {target_name}: {shares}")
    print_alignment(result.alignment)


def _needed(value: str | None, hint: str) -> str:
    if value is None:
        raise typer.BadParameter("is missing", param_hint=hint)
    return value
