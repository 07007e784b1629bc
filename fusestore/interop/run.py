"""`import_rows`: a distribution cache of rows that another tool made, without running a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.manifest import (
    CorpusIdentity,
    Fingerprint,
    ImportedFile,
    KeptSize,
    ModelIdentity,
    Origin,
)
from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.rows import Rows, blank_rows
from fusestore.cache.writer import CacheWriter, clear_up, stored_order
from fusestore.capture.sample import order_of_sample, sample_slices
from fusestore.capture.score_totals import score_totals
from fusestore.corpus.corpus import Corpus, open_corpus
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.errors import (
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.interop.decoded_document import DecodedDocument, Decoder
from fusestore.interop.foreign import ForeignDocument, ForeignFile, ForeignFormat, ReadJob
from fusestore.interop.formats import IMPORTS, check_format, load
from fusestore.interop.row_spool import RowSpool
from fusestore.interop.settings import ImportSettings
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.storage.replace import scratch_folder
from fusestore.store.layout import Store, check_name
from fusestore.store.licenses import License
from fusestore.store.result import StageResult
from fusestore.tokenizers.token_table import TokenTable, count_known
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary_table import keep_vocabulary

ENGINE = "imported"
"""Stands in the fingerprint for the engine of rows that no engine of ours computed."""

_BLOCK = 2**20


@dataclass(frozen=True)
class _Read:
    """A document whose rows are in the spool."""

    text: DecodedDocument
    positions: npt.NDArray[np.int64]
    number: int


def import_rows(
    store: Store,
    name: str,
    layout: str,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: ImportSettings | None = None,
    *,
    model: Model | Tokenizer | str | os.PathLike[str],
    corpus: str | None = None,
    reporter: Reporter | None = None,
) -> StageResult[Cache]:
    """Make a cache of the rows in files of another tool.

    All files are read and checked before anything is written. The texts of the rows become the
    corpus `corpus`, or are found in it if the store has one.

    Args:
        store: receives the cache.
        name: the cache's name.
        layout: their format; see `interop.formats`.
        paths: files and folders of this machine.
        settings: how they are read and stored.
        model: whose rows they are: a model, from whose configuration the vocabulary's width is
            known, or its tokenizer alone; or what opens either.
        corpus: name of the corpus; that of the cache unless given.
        reporter: receives progress updates, and lines on what is left out.

    Returns:
        The complete cache. It was created unless the store had it.

    Raises:
        NotFoundError: no such file or model.
        InvalidInputError: a file is damaged or of another layout, or its ids are of another
            tokenizer; the message names file and record. Nothing was written.
        IncompatibleError: the existing corpus holds none of the texts.
        FingerprintMismatchError: another cache has this name.
    """
    settings = settings or ImportSettings()
    reporter = reporter or SilentReporter()
    check_name(name)
    check_format(layout, IMPORTS, "import")
    importer: ForeignFormat = load(IMPORTS[layout])()
    files = find_files(importer, layout, paths)
    width, identity, tokenizer = _model(store, model)
    origin = Origin(
        format=layout,
        files=tuple(_record(file) for file in files),
        options=settings.reading,
    )
    existing = _existing(store, name, origin, tokenizer, settings)
    if existing is not None:
        return StageResult(existing, created=False)
    job = ReadJob(settings, tokenizer, width)
    with RowSpool() as spool:
        with reporter.stage(f"Reading {layout} files", "files") as progress:
            documents = _read(importer, _Counted(files, progress), job, spool, reporter)
            progress(len(files), len(files))
        opened = _corpus(store, corpus or name, layout, documents, settings, reporter)
        placed = _placed(opened, documents, layout, reporter)
        contents = _Contents(opened, placed, spool, tokenizer)
        fingerprint = _fingerprint(
            contents, name, tokenizer, identity or _unnamed(origin, width), origin, settings
        )
        with reporter.stage(f"Writing {name}", "rows") as progress:
            _write(store, name, fingerprint, contents, tokenizer, model, settings, progress)
    return StageResult(open_cache(store, name), created=True)


def find_files(
    importer: ForeignFormat,
    layout: str,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[ForeignFile]:
    """The files of all paths, in order.

    Raises:
        NotFoundError: a path is not there, or has no file of the layout.
        InvalidInputError: a URL.
    """
    found: list[ForeignFile] = []
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        text = os.fspath(given)
        if "://" in text:
            raise InvalidInputError(
                f"{text} is a URL, and files are imported from this machine. Download them first."
            )
        path = Path(text).expanduser()
        if not path.exists():
            raise NotFoundError(f"There is no file or folder {text} to import.")
        files = importer.files(path)
        if not files:
            raise NotFoundError(
                f"{text} holds no file of the format {layout}, which end with "
                f"{', '.join(importer.suffixes)}."
            )
        for file in files:
            inside = path.is_dir()
            found.append(ForeignFile(file, str(file.relative_to(path)) if inside else file.name))
    return found


def _record(file: ForeignFile) -> ImportedFile:
    digest = hashlib.sha256()
    size = 0
    try:
        with file.path.open("rb") as data:
            while block := data.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise InvalidInputError(f"{file.name} cannot be read: {error}.") from error
    return ImportedFile(name=file.name, num_bytes=size, sha256=digest.hexdigest())


def _model(
    store: Store, model: Model | Tokenizer | str | os.PathLike[str]
) -> tuple[int, ModelIdentity | None, Tokenizer]:
    """The width of the output, the model's identity if it is known, and the tokenizer."""
    if isinstance(model, Model):
        identity = ModelIdentity(
            # As of a model that a server runs: its weights are not here.
            spec_digest=model.config_digest,
            architecture=model.architecture,
            vocab_size=model.vocab_size,
        )
        return model.vocab_size, identity, model.tokenizer
    folder = None if isinstance(model, Tokenizer) else Path(model).expanduser()
    if folder is not None and (folder / "tokenizer.json").is_file():
        # A folder of a tokenizer alone, or of a model.
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = Target.open(model, store=store).tokenizer
    return len(tokenizer), None, tokenizer


def _unnamed(origin: Origin, width: int) -> ModelIdentity:
    """The identity of a model of which only rows are known: that of their files."""
    digests = "".join(f"{file.sha256}\n" for file in origin.files)
    return ModelIdentity(
        spec_digest=hashlib.sha256(digests.encode()).hexdigest(),
        architecture="unknown",
        vocab_size=width,
    )


def _existing(
    store: Store, name: str, origin: Origin, tokenizer: Tokenizer, settings: ImportSettings
) -> Cache | None:
    """The complete cache of this import, if the store has it.

    Raises:
        FingerprintMismatchError: another cache has the name.
    """
    location = store.cache(name)
    if not (location / "manifest.json").exists():
        return None
    cache = open_cache(store, name)
    fingerprint = cache.fingerprint
    found = (fingerprint.origin, fingerprint.tokenizer_digest, fingerprint.logprob_step)
    if found != (origin, tokenizer.digest, settings.grid):
        raise FingerprintMismatchError(
            f"Cache {name!r} in {store.location} was made from something else than these files "
            "with these settings. Import under another name, or remove it with "
            f"`fusestore rm cache/{name}`."
        )
    return cache


class _Counted(Sequence[ForeignFile]):
    """Files that report how many were read, when the next one is asked for.

    How many documents a file has is known only when it was read.
    """

    def __init__(self, files: Sequence[ForeignFile], progress: Progress) -> None:
        self._files, self._progress = files, progress

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> ForeignFile: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ForeignFile]: ...

    def __getitem__(self, index: int | slice) -> ForeignFile | Sequence[ForeignFile]:
        return self._files[index]

    def __iter__(self) -> Iterator[ForeignFile]:
        for number, file in enumerate(self._files):
            self._progress(number, len(self._files))
            yield file


def _read(
    importer: ForeignFormat,
    files: Sequence[ForeignFile],
    job: ReadJob,
    spool: RowSpool,
    reporter: Reporter,
) -> list[_Read]:
    """Read, check and decode all documents; their rows go to the spool."""
    decoder = Decoder(job.tokenizer, spell_special=job.settings.special_tokens == "spell")
    documents: list[_Read] = []
    left_out = 0
    for document in importer.documents(files, job):
        decoded = _decoded(decoder, document)
        if decoded is None or not decoded.text.strip():
            left_out += 1
            continue
        documents.append(_kept(document, decoded, spool))
    if left_out:
        reporter.line(
            f"{left_out:,} documents were left out: they have no text, or begin inside a character"
        )
    if not any(len(each.positions) for each in documents):
        names = ", ".join(file.name for file in files[:3])
        raise InvalidInputError(f"{names} held no document with text and rows.")
    unlike = sum(not each.text.as_encoded for each in documents)
    if unlike:
        reporter.line(
            f"{unlike:,} of {len(documents):,} documents have other tokens than the tokenizer "
            "makes of their text; they are kept as they are"
        )
    return documents


def _decoded(decoder: Decoder, document: ForeignDocument) -> DecodedDocument | None:
    try:
        return decoder.decode(document.place, document.token_ids)
    except InvalidInputError as error:
        if document.whole_text or not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        return None


def _kept(document: ForeignDocument, decoded: DecodedDocument, spool: RowSpool) -> _Read:
    """Keep the rows of the tokens that are left; rows without entries do not count."""
    rows, length = document.rows, len(decoded.token_ids)
    used = (rows.logprobs > -np.inf).any(axis=1) & (document.positions < length)
    positions = document.positions[used]
    label = rows.label_logprob[used].copy()
    # What follows the last token, if anything, is no token of the document.
    label[positions == length - 1] = np.nan
    number = spool.add(Rows(rows.ids[used], rows.logprobs[used], rows.tail[used], label))
    return _Read(decoded, positions, number)


def _corpus(
    store: Store,
    name: str,
    layout: str,
    documents: Sequence[_Read],
    settings: ImportSettings,
    reporter: Reporter,
) -> Corpus:
    """The corpus of this name, made of the documents' texts if there is none."""
    if (store.corpus(name) / "manifest.json").exists():
        return open_corpus(store, name)
    with scratch_folder("import") as folder:
        file = folder / f"{layout}.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for each in documents:
                lines.write(json.dumps({"text": each.text.text}, ensure_ascii=False) + "\n")
        made = build_corpus(
            store,
            name,
            file,
            CorpusSettings(max_length=None, held_out_fraction=settings.held_out_fraction),
            reporter=reporter,
        )
    return made.artifact


def _placed(
    corpus: Corpus, documents: Sequence[_Read], layout: str, reporter: Reporter
) -> list[_Read | None]:
    """For each document of the corpus what was read of it.

    Raises:
        IncompatibleError: the corpus has none of the texts, or holds conversations.
    """
    if corpus.manifest.fingerprint.chat is not None:
        raise IncompatibleError(
            f"Corpus {corpus.name!r} holds conversations, and imported rows are of texts. Name "
            "another corpus, which is made of the rows' texts."
        )
    by_text: dict[str, deque[_Read]] = {}
    for each in documents:
        by_text.setdefault(each.text.text, deque()).append(each)
    placed = [queue.popleft() if (queue := by_text.get(text)) else None for text in corpus.texts()]
    left = sum(map(len, by_text.values()))
    if left == len(documents):
        raise IncompatibleError(
            f"Corpus {corpus.name!r} holds none of the {len(documents):,} texts of the {layout} "
            "rows. Name another corpus with --corpus: one that does not exist is made of them."
        )
    if left:
        reporter.line(
            f"{left:,} of {len(documents):,} documents are not in corpus {corpus.name}, and were "
            "left out"
        )
    return placed


class _Contents:
    """Tokens and rows of all documents of a corpus.

    Attributes:
        corpus: the corpus.
        tokens: of its documents; those without rows as the tokenizer makes them.
        kept: which have a row.
        is_tail_known, are_labels_known: of all rows.
        starts_with_bos: whether all documents with rows do.
    """

    def __init__(
        self,
        corpus: Corpus,
        placed: Sequence[_Read | None],
        spool: RowSpool,
        tokenizer: Tokenizer,
    ) -> None:
        self.corpus = corpus
        self._placed = placed
        self._spool = spool
        found = [each.text for each in placed if each is not None]
        bos = tokenizer.bos_id
        self.starts_with_bos = bos is not None and all(
            bool(each.token_ids[0] == bos) for each in found
        )
        texts = corpus.texts()
        missing = [texts[index] for index, each in enumerate(placed) if each is None]
        others = tokenizer.encode(missing, add_bos=self.starts_with_bos)
        parts, other = [], 0
        for each in placed:
            if each is None:
                parts.append(others.document(other))
                other += 1
            else:
                parts.append((each.text.token_ids, each.text.end_offsets))
        offsets = np.cumsum([0, *(len(ids) for ids, _ in parts)]).astype(np.int64)
        self.tokens = TokenTable(
            np.concatenate([ids for ids, _ in parts]),
            np.concatenate([ends for _, ends in parts]),
            offsets,
        )
        has_row = np.zeros(self.tokens.num_tokens, np.bool_)
        self.label_logprob = np.full(self.tokens.num_tokens, np.nan, np.float32)
        self.is_tail_known = self.are_labels_known = True
        for start, stop, each in zip(offsets[:-1], offsets[1:], placed, strict=True):
            if each is None or not len(each.positions):
                continue
            rows = spool.read(each.number)
            has_row[start + each.positions] = True
            self.label_logprob[start + each.positions] = rows.label_logprob
            self.is_tail_known &= not np.isnan(rows.tail).any()
            unknown = np.isnan(rows.label_logprob) & (each.positions < stop - start - 1)
            self.are_labels_known &= not unknown.any()
        self.kept = KeptRows.where(has_row)

    @property
    def width(self) -> int:
        """k, the most entries of a row."""
        return self._spool.width

    def rows(self, first: int, last: int) -> Rows:
        """Kept rows `[first, last)` of the corpus."""
        tokens = self.kept.tokens(first, last)
        offsets = self.tokens.document_offsets
        begin, end = np.searchsorted(offsets, tokens[[0, -1]], side="right") - 1
        parts = [
            self._spool.read(each.number)
            for each in self._placed[int(begin) : int(end) + 1]
            if each is not None and len(each.positions)
        ]
        # The first document's rows may begin before the range.
        skipped = first - self.kept.rows_of(0, int(offsets[begin]))[1]
        taken = slice(skipped, skipped + last - first)
        tail = np.concatenate([part.tail for part in parts])[taken]
        return Rows(
            np.concatenate([part.ids for part in parts])[taken],
            np.concatenate([part.logprobs for part in parts])[taken],
            tail if self.is_tail_known else np.full_like(tail, np.nan),
            np.concatenate([part.label_logprob for part in parts])[taken],
        )

    def blocks(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Rows]:
        """The rows of ranges of tokens that have any."""
        for start, stop in ranges:
            first, last = self.kept.rows_of(start, stop)
            if last > first:
                yield self.rows(first, last)


def _fingerprint(
    contents: _Contents,
    name: str,
    tokenizer: Tokenizer,
    identity: ModelIdentity,
    origin: Origin,
    settings: ImportSettings,
) -> Fingerprint:
    tokens, kept = contents.tokens, contents.kept
    is_whole = kept.num_rows == tokens.num_tokens
    return Fingerprint(
        source=name,
        model=identity,
        tokenizer_digest=tokenizer.digest,
        tokenizer_length=len(tokenizer),
        corpus=CorpusIdentity(name=contents.corpus.name, digest=contents.corpus.manifest.digest),
        add_bos=contents.starts_with_bos,
        only="all" if is_whole else "imported",
        kept=None if is_whole else KeptSize(num_rows=kept.num_rows, num_runs=len(kept.runs)),
        top_k=contents.width,
        profile=settings.profile,
        logprob_step=settings.grid,
        engine=ENGINE,
        known_tail=contents.is_tail_known,
        known_labels=contents.are_labels_known,
        origin=origin,
        dtype=None,
        max_length=int(np.diff(tokens.document_offsets).max(initial=1)),
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
    )


def _write(
    store: Store,
    name: str,
    fingerprint: Fingerprint,
    contents: _Contents,
    tokenizer: Tokenizer,
    model: object,
    settings: ImportSettings,
    progress: Progress,
) -> None:
    tokens, kept = contents.tokens, contents.kept
    order: IdOrder | None = None
    if fingerprint.profile != "fast":
        order = stored_order(store, name, fingerprint)
        if order is None:
            ranges = [(part.start, part.stop) for part in sample_slices(tokens, kept)]
            # The sample may end before a document's first row.
            sample = _joined([blank_rows(0, contents.width), *contents.blocks(ranges)])
            order = order_of_sample(fingerprint.model.vocab_size, tokens, sample, kept)
    writer = CacheWriter.create(store, name, fingerprint, tokens, order, kept)
    keep_vocabulary(store, tokenizer)
    for shard in writer.missing_shards():
        start, stop = writer.plan.bounds(shard)
        writer.write_shard(shard, contents.rows(start, stop))
        progress(stop, kept.num_rows)
    offsets = tokens.document_offsets
    rows_before = kept.rows_before(offsets)
    skipped = np.flatnonzero((np.diff(rows_before) == 0) & (np.diff(offsets) > 0)).tolist()
    counted = tokens
    if fingerprint.is_partial:
        counted = count_known(tokens, contents.label_logprob)
    totals = score_totals(contents.corpus, counted, contents.label_logprob, skipped)
    spec = model.portable_spec if isinstance(model, Model) else None
    found = License.of(settings.license, "user")
    if found is None and isinstance(model, Model):
        found = model.license
    writer.finish(totals, skipped, spec, model_license=found)
    clear_up(writer.location)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.tail for part in parts]),
        np.concatenate([part.label_logprob for part in parts]),
    )
