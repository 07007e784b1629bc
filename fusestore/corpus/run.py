"""`make_corpus`: the corpus that a fusion.toml or the command line describes."""

from __future__ import annotations

from collections.abc import Sequence

from fusestore.corpus.build import Corpus, build_corpus
from fusestore.corpus.splits import HeldOut
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.workflows.fusion_config import CorpusConfig


def make_corpus(
    store: Store,
    config: CorpusConfig,
    tokenizers: Sequence[Tokenizer],
    reporter: Reporter | None = None,
) -> tuple[Corpus, bool]:
    """Build the corpus unless it is there.

    Returns:
        The corpus, and whether it had to be built.

    Raises:
        NotFoundError, InvalidInputError, FingerprintMismatchError: as `build_corpus`.
    """
    reporter = reporter or SilentReporter()
    rules = []
    if config.held_out_pattern:
        rules.append(HeldOut(patterns=config.held_out_pattern))
    if config.held_out_fraction is not None:
        rules.append(HeldOut(fraction=config.held_out_fraction))
    folder = store.corpus(config.name)
    there = (folder / "manifest.json").exists() and (folder / "documents.parquet").exists()
    with reporter.stage(f"Reading and splitting corpus {config.name}", "bytes") as progress:
        corpus = build_corpus(
            store,
            config.name,
            [resolve_path(path) for path in config.inputs],
            text_column=config.text_column,
            split_column=config.split_column,
            held_out=rules,
            max_documents=config.max_documents or None,
            max_bytes=config.max_bytes or None,
            sample_seed=config.sample_seed,
            tokenizers=tokenizers,
            max_length=config.max_length,
            storage_options=dict(store.location.storage_options),
            progress=progress,
        )
    return corpus, not there
