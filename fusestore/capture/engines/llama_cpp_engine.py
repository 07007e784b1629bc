"""The engine `llama.cpp`: a GGUF file in this process, with its quantized weights as they are."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.libllama import LlamaModel
from fusestore.capture.engines.protocol import (
    Capabilities,
    Document,
    DocumentRows,
    Engine,
    EngineJob,
)
from fusestore.capture.selection import select
from fusestore.errors import EngineError, IncompatibleError, InvalidInputError
from fusestore.models.gguf_model import GgufModel
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer

_PROOF_LENGTH = 32

_NO_EFFECT = ("batch_size", "attention", "server", "served_model")

_Ids = npt.NDArray[np.int32]


class LlamaCppEngine(Engine):
    """Runs one document after the other, in batches of its tokens.

    So a row depends on no other document. Threads are as many as torch has.
    """

    capabilities = Capabilities(
        whole_rows=True, wanted_rows_only=True, local_weights=True, gguf=True
    )
    device = "cpu"

    def __init__(self, model: LlamaModel) -> None:
        """Use a model that is loaded and checked; `start` does both."""
        self._model = model

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """Load the file, compare its vocabulary with ours, and check that rows are causal.

        Raises:
            MissingDependencyError: the package xllamacpp is not installed.
            InvalidInputError: llama.cpp cannot load the file, or a setting has no effect here.
            IncompatibleError: an id of the corpus is another token there, or rows have read later
                tokens.
        """
        settings = job.settings
        given = [name for name in _NO_EFFECT if getattr(settings, name)]
        if settings.device not in ("auto", "cpu"):
            given.append("device")
        if given:
            raise InvalidInputError(
                f"{given[0]} has no effect with engine llama.cpp, which runs one document at a "
                "time in this process, where the installed xllamacpp does. Leave it out."
            )
        if not isinstance(job.model, GgufModel):
            raise IncompatibleError(
                f"Engine llama.cpp reads GGUF files, and {job.model.spec} was opened as another "
                "kind of model."
            )
        model = LlamaModel(job.model.file, job.max_length, torch.get_num_threads())
        try:
            _check_vocabulary(model, job)
            note = compare_tokens(model, job.tokens, job.model.tokenizer)
            if note is not None:
                job.reporter.line(f"{job.name}: {note}")
            _check_causal(model, job.tokens.token_ids[:_PROOF_LENGTH], job.name)
        except BaseException:
            model.close()
            raise
        return cls(model)

    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """See `Engine.run`; spans of rows are yielded for each batch of tokens."""
        for document in documents:
            ids = document.token_ids
            # A document's last row has no label; what is looked up for it is ignored.
            labels = torch.from_numpy(np.roll(ids, -1).astype(np.int64))
            try:
                for positions, logits in self._model.logits(ids, document.wanted):
                    selection = select(
                        rule,
                        torch.from_numpy(logits),
                        torch.arange(len(logits)),
                        labels[positions],
                        document.first_row + positions,
                    )
                    finite = selection.finite.numpy()
                    if document.wanted is not None:
                        finite = finite | ~document.wanted[positions]
                    values = {
                        field.name: getattr(selection, field.name).numpy() for field in fields(Rows)
                    }
                    edges = np.flatnonzero(np.diff(positions, prepend=-2, append=-2) != 1)
                    for start, stop in pairwise(edges.tolist()):
                        rows = Rows(**{name: each[start:stop] for name, each in values.items()})
                        is_finite = bool(finite[start:stop].all())
                        yield DocumentRows(document, int(positions[start]), rows, is_finite)
            except EngineError as error:
                raise EngineError(
                    f"Document {document.index} ({len(ids):,} tokens): {error}"
                ) from error

    def close(self) -> None:
        """Free the model."""
        self._model.close()


def _check_vocabulary(model: LlamaModel, job: EngineJob) -> None:
    """Check that every id of the corpus is the same token for llama.cpp as for fusestore."""
    if model.vocab_size != job.vocab_size:
        raise IncompatibleError(
            f"{job.model.spec} has {model.vocab_size:,} ids for llama.cpp, and its metadata lists "
            f"{job.vocab_size:,} tokens. The file is damaged: download it again."
        )
    token_bytes = job.model.tokenizer.vocabulary.token_bytes
    for token_id in np.unique(job.tokens.token_ids).tolist():
        ours, theirs = token_bytes[token_id], model.piece(token_id)
        if ours != theirs:
            raise IncompatibleError(
                f"Token {token_id} is {ours!r} in the corpus, and {theirs!r} for llama.cpp, which "
                "would read another text. Update xllamacpp, or use engine transformers."
            )


def compare_tokens(model: LlamaModel, tokens: TokenTable, tokenizer: Tokenizer) -> str | None:
    """Where llama.cpp's own tokenizer splits the documents of a corpus otherwise than fusestore's.

    The model reads fusestore's tokens. Text that a tokenizer changes is not compared.

    Args:
        model: has the other tokenizer.
        tokens: fusestore's tokens.
        tokenizer: fusestore's tokenizer.

    Returns:
        A sentence; None if there is no difference.
    """
    token_bytes = tokenizer.vocabulary.token_bytes
    differing, first = 0, ""
    for index in range(tokens.num_documents):
        ids, ends = tokens.document(index)
        own = ids[1:] if len(ids) and ends[0] == 0 and ids[0] == tokenizer.bos_id else ids
        pieces = [token_bytes[token_id] for token_id in own.tolist()]
        text = b"".join(pieces)
        # A space that the tokenizer puts before a text, which llama.cpp puts there as well.
        added = len(text) - (int(ends[-1]) if len(ends) else 0)
        if added == 1 and text.startswith(b" "):
            text = text[1:]
        elif added:
            continue
        theirs = model.tokenize(text)
        if np.array_equal(own, theirs):
            continue
        if not differing:
            first = _first_difference(index, pieces, [token_bytes[i] for i in theirs.tolist()])
        differing += 1
    if not differing:
        return None
    return (
        f"llama.cpp's own tokenizer splits {differing:,} of {tokens.num_documents:,} documents "
        f"otherwise, first {first}. The model reads fusestore's tokens"
    )


def _first_difference(document: int, ours: Sequence[bytes], theirs: Sequence[bytes]) -> str:
    same = next(
        (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    shown = [" ".join(map(repr, _text(side[same : same + 3]))) for side in (ours, theirs)]
    offset = sum(map(len, ours[:same]))
    return f"document {document} at byte {offset} ({shown[0]} here, {shown[1]} there)"


def _text(pieces: Iterable[bytes]) -> list[str]:
    return [piece.decode(errors="replace") for piece in pieces]


def _check_causal(model: LlamaModel, ids: _Ids, name: str) -> None:
    """Check that rows do not move with the tokens after them: same shapes, so same rounding."""
    half = max(1, len(ids) // 2)
    changed = np.concatenate([ids[:half], (ids[half:] + 1) % model.vocab_size])
    rows, others = (
        np.concatenate([part.copy() for _, part in model.logits(each)])[:half]
        for each in (ids, changed)
    )
    if not np.isfinite(rows).all():
        return  # The document will be reported as not finite.
    moved = float(np.abs(rows - others).max())
    if moved > 1e-3 * float(np.abs(rows).max()):
        raise IncompatibleError(
            f"{name} is no causal language model: a logit moved by {moved:.2g} when the tokens "
            "after it were replaced. Give a model that was trained to predict the next token."
        )
