"""`fusestore import` and `fusestore export`: rows in the layouts of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusestore.interop.formats import EXPORTS, IMPORTS, check_format
from fusestore.interop.settings import ImportSettings
from fusestore.store.shown_table import counted

from .console import ConsoleReporter, output, print_json
from .early_checks import check_artifacts, check_models
from .options import MODEL_FORMS, JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options


@settings_options(ImportSettings)
def import_rows(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help=f"Layout of the files: {', '.join(IMPORTS)}.", show_default=False
        ),
    ],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Files or folders to read.", show_default=False),
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="Name of the cache.")],
    settings: ImportSettings,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=f"Model that made the rows: {MODEL_FORMS}. Its weights are not loaded.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="MODEL",
            help="Tokenizer of the rows, if the model is not at hand: a folder, hub id, tokenizer "
            "file, or a name in the store.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the corpus of the rows' texts. If there is one, the texts are found in "
            "it; else it is made. By default the name of the cache.",
            show_default=False,
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import rows that another tool made, without running a model.

    All files are checked before anything is written. docs/interop.md says what each format keeps.
    """
    check_format(layout, IMPORTS, "import")
    if (model is None) == (tokenizer is None):
        raise typer.BadParameter(
            "give the model that made the rows, or its tokenizer (one of the two)",
            param_hint="--model or --tokenizer",
        )
    opened = open_store(store, storage_option)
    _check_paths(paths)
    check_models([model, tokenizer])
    from fusestore.interop.run import import_rows as import_files
    from fusestore.models.model import Model

    handle = Model.open(model, store=opened) if model is not None else str(tokenizer)
    result = import_files(
        opened,
        name,
        layout,
        paths,
        settings,
        model=handle,
        corpus=corpus,
        reporter=ConsoleReporter(),
    )
    cache = result.artifact
    if as_json:
        content = cache.manifest.model_dump(mode="json")
        print_json({"cache": name, "built": result.created, **content})
        return
    verb = "Imported" if result.created else "Already there:"
    fingerprint = cache.fingerprint
    output.print(
        f"{verb} cache {name}: {fingerprint.num_rows:,} rows of at most {cache.k} entries for "
        f"{counted(fingerprint.num_tokens, 'token')} of corpus {fingerprint.corpus.name}, in "
        f"{opened.location}"
    )
    if not fingerprint.known_tail:
        output.print("The mass outside the entries is not known. Fusions refuse such a cache.")
    if not fingerprint.known_labels:
        output.print(
            "Some next tokens' probabilities are not known. The cache can be fused, alone or by "
            "fixed weights; scores and forecasts need all of them."
        )


def export(
    cache: Annotated[
        str, typer.Argument(metavar="cache/NAME", help="Cache to export.", show_default=False)
    ],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="File or folder to write; it must not exist.", show_default=False
        ),
    ],
    store: StoreOption,
    layout: Annotated[
        str,
        typer.Option(
            "--format", "-f", metavar="FORMAT", help=f"Layout to write: {', '.join(EXPORTS)}."
        ),
    ] = "parquet",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the rows of a cache to the layout of another tool.

    docs/interop.md says what each format keeps.
    """
    check_format(layout, EXPORTS, "export to")
    kind, separator, name = cache.partition("/")
    if not separator:
        kind, name = "cache", kind
    if kind != "cache":
        raise typer.BadParameter(f"{cache} is no cache; write cache/NAME", param_hint="cache/NAME")
    opened = open_store(store, storage_option)
    check_artifacts(opened, "cache", [name])
    from fusestore.interop.export import export_cache

    exported = export_cache(opened, name, layout, path, reporter=ConsoleReporter())
    if as_json:
        print_json(exported.model_dump(mode="json"))
        return
    output.print(
        f"Exported cache {name} to {exported.path}: {counted(exported.num_tokens, 'token')} of "
        f"{counted(exported.num_documents, 'document')}, {exported.num_bytes:,} bytes"
    )


def _check_paths(paths: list[str]) -> None:
    from fusestore.errors import NotFoundError

    for path in paths:
        if "://" not in path and not Path(path).expanduser().exists():
            raise NotFoundError(f"There is no file or folder {path} to import.")
