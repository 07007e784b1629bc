"""`build_corpus`: reads text, cuts it to fit the models of a run, and writes it to the store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import Corpus
from fusestore.corpus.manifest import LICENSE_FILE, ChatSettings, CorpusLicense
from fusestore.corpus.settings import CorpusSettings
from fusestore.corpus.splits import HeldOut
from fusestore.corpus.unspelled import describe_unspelled
from fusestore.errors import InvalidInputError
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.options import HTTP_SCHEMES
from fusestore.storage.packages import resolve_path
from fusestore.storage.publish import publish
from fusestore.store.layout import Store
from fusestore.store.licenses import License
from fusestore.store.result import StageResult
from fusestore.tokenizers.chat_template import GENERATION_PROMPT
from fusestore.tokenizers.tokenizer import Tokenizer


def build_corpus(
    store: Store,
    name: str,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: CorpusSettings | None = None,
    *,
    tokenizers: Sequence[Model | Tokenizer | str | os.PathLike[str]] = (),
    storage_options: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> StageResult[Corpus]:
    """Read text, cut long documents where all tokenizers agree, and write the corpus.

    Args:
        store: receives the corpus.
        name: of the corpus.
        inputs: files, shell patterns, folders or URLs; see `fusestore corpus --help` for formats.
        settings: columns, splits and sizes.
        tokenizers: of all models of the run: models, tokenizers, or specs as for `Model.open` with
            this store. Documents will fit each of them.
        storage_options: for the storage of the inputs; for HTTP only if no input is elsewhere. By
            default those of the store, for inputs on the same storage.
        reporter: receives progress updates, and a line on files that are not read.

    Returns:
        The corpus. It was created unless the store had it already.

    Raises:
        NotFoundError: no input matches, or there is no such model.
        InvalidInputError: an input cannot be read, no text is left, or there is no tokenizer to
            count `max_length` tokens with; nothing was written.
        FingerprintMismatchError: another corpus has this name; it was not changed.
    """
    settings = settings or CorpusSettings()
    reporter = reporter or SilentReporter()
    if settings.max_length is not None and not tokenizers:
        raise InvalidInputError(
            f"max_length is {settings.max_length:,} tokens, but there is no tokenizer to count "
            "them with. Name the models of the run (-t), or set max_length to none, which leaves "
            "documents whole."
        )
    opened = [Target.open(tokenizer, store=store).tokenizer for tokenizer in tokenizers]
    variables = dict(settings.template_variables)
    if settings.add_generation_prompt:
        variables[GENERATION_PROMPT] = True
    chat = ChatSettings(
        train_on=settings.train_on,
        template_variables=variables,
        fallback_template=_template_text(settings.fallback_template),
    )
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    folder = store.corpus(name)
    existed = (folder / "manifest.json").exists() and (folder / "documents.parquet").exists()
    with reporter.stage(f"Reading and splitting corpus {name}", "bytes") as progress:
        corpus = write_corpus(
            store,
            name,
            _locations([resolve_path(os.fspath(path)) for path in paths], store, storage_options),
            text_column=settings.text_column,
            split_column=settings.split_column,
            form=settings.form,
            keep_white_space=settings.keep_white_space,
            chat=chat,
            held_out=_held_out_rules(settings),
            max_documents=settings.max_documents or None,
            max_bytes=settings.max_bytes or None,
            sample_seed=settings.sample_seed,
            tokenizers=opened,
            max_length=settings.max_length,
            progress=progress,
            report=reporter.line,
        )
    _keep_license(corpus, settings)
    if not existed:
        for tokenizer in opened:
            unspelled = describe_unspelled(corpus, tokenizer)
            if unspelled:
                reporter.line(f"{name}: {unspelled}")
    return StageResult(corpus, created=not existed)


def _keep_license(corpus: Corpus, settings: CorpusSettings) -> None:
    """Record a license that is stated, in place of one that was stated before."""
    stated = License.of(settings.license, "user")
    if stated is not None and stated != corpus.license:
        content = CorpusLicense(corpus_digest=corpus.digest, license=stated)
        publish(corpus.location / LICENSE_FILE, content.to_bytes())


def _locations(
    paths: Sequence[str], store: Store, storage_options: Mapping[str, object] | None
) -> list[Location]:
    """Where the inputs are. Options may be secret: no storage receives those of another."""
    remote = [path for path in paths if "://" in path]
    only_http = all(path.startswith(HTTP_SCHEMES) for path in remote)
    locations = []
    for path in paths:
        # The short name that other programs have for what the Hub converted to Parquet.
        url = path.replace("@~parquet", "@refs%2Fconvert%2Fparquet")
        if storage_options is None:
            is_ours = "://" in path and store.location.shares_storage(path)
            options: Mapping[str, object] = dict(store.location.storage_options) if is_ours else {}
        else:
            # HTTP has other options than the rest, and servers of several owners.
            is_other = path.startswith(HTTP_SCHEMES) and not only_http
            options = {} if is_other else storage_options
        locations.append(Location.parse(url, options))
    return locations


def _template_text(given: str | None) -> str | None:
    """A template, or the content of its file."""
    if given is None or not given.endswith(".jinja"):
        return given
    path = Path(resolve_path(given)).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"The chat template {given} cannot be read: {error}. As with inputs, a relative path "
            f"begins in the folder in which the command runs, {Path.cwd()}."
        ) from error


def _held_out_rules(settings: CorpusSettings) -> list[HeldOut]:
    rules = []
    if settings.held_out_pattern:
        rules.append(HeldOut(patterns=settings.held_out_pattern))
    if settings.held_out_fraction is not None:
        rules.append(HeldOut(fraction=settings.held_out_fraction))
    return rules
