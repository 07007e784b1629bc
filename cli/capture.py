"""`fusestore capture`: capture a source model's distributions."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.capture.settings import CaptureSettings

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options
from .settings_options import settings_options


@settings_options(CaptureSettings)
def capture(
    model: Annotated[
        str, typer.Argument(help="A model folder, hub id, .gguf file, or package:NAME.")
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the cache.")],
    settings: CaptureSettings,
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "corpus",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Capture a model's top-k next-token log-probabilities over a corpus.

    Run it again after an interruption: what is there is kept.
    """
    from fusestore.capture.run import capture as capture_model
    from fusestore.corpus.build import open_corpus
    from fusestore.models.model import Model
    from fusestore.store.layout import Store

    where = Store.open(store, storage_options(storage_option))
    opened = open_corpus(where, corpus)
    handle = Model.open(
        model,
        store=where,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    captured = capture_model(where, name, handle, opened, settings, reporter=ConsoleReporter())
    result = captured.artifact
    if as_json:
        print_json(
            {"cache": name, "built": captured.created, **result.manifest.model_dump(mode="json")}
        )
        return
    verb = "Captured" if captured.created else "Already there:"
    output.print(
        f"{verb} cache {name}: {len(result):,} rows of at most {result.k} entries in "
        f"{where.location}"
    )
