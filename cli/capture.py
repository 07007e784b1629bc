"""`fusestore capture`: capture a source model's distributions."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.capture.settings import CaptureSettings
from fusestore.process_rank import launcher_rank
from fusestore.workflows.executors.settings import ExecutorSettings

from .console import ConsoleReporter, output, print_json
from .early_checks import check_artifacts, check_models
from .executors import hand_out
from .options import MODEL_FORMS, JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options


@settings_options(CaptureSettings)
@settings_options(ExecutorSettings, parameter="executor_settings")
def capture(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"Model to capture: {MODEL_FORMS}.", show_default=False
        ),
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="Name of the cache.")],
    settings: CaptureSettings,
    executor_settings: ExecutorSettings,
    corpus: Annotated[str, typer.Option(metavar="NAME", help="Name of the corpus.")] = "corpus",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Capture a model's next-token distributions over a corpus.

    The same command continues an interrupted capture; finished shards are kept.
    """
    opened = open_store(store, storage_option)
    check_artifacts(opened, "corpus", [corpus])
    check_models([model])
    if executor_settings.name is not None and settings.tensor_parallel:
        raise typer.BadParameter(
            "shares one model among the processes of torchrun; the workers of --executor each load "
            "their own",
            param_hint="--tensor-parallel",
        )
    by_workers = hand_out(executor_settings, "cache", opened.cache(name))
    from fusestore.capture.kept_summary import kept_summary
    from fusestore.capture.run import capture as capture_model
    from fusestore.corpus.corpus import open_corpus
    from fusestore.models.model import Model
    from fusestore.progress import SilentReporter

    documents = open_corpus(opened, corpus)
    handle = Model.open(
        model,
        store=opened,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    # Of processes that share a model one prints.
    is_silent = settings.tensor_parallel and launcher_rank() > 0
    reporter = SilentReporter() if is_silent else ConsoleReporter()
    result = capture_model(opened, name, handle, documents, settings, reporter=reporter)
    if is_silent:
        return
    cache, created = result.artifact, by_workers or result.created
    kept = kept_summary(cache)
    if as_json:
        content = cache.manifest.model_dump(mode="json")
        saved = None if kept is None else kept.model_dump(mode="json")
        print_json({"cache": name, "built": created, "kept": saved, **content})
        return
    verb = "Captured" if created else "Already there:"
    output.print(
        f"{verb} cache {name}: {cache.fingerprint.num_rows:,} rows of at most {cache.k} entries in "
        f"{opened.location}"
    )
    if kept is not None:
        output.print(kept.describe())
