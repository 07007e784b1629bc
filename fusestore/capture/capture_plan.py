"""`CapturePlan`: the fingerprint and tokens of a capture, before its model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.manifest import (
    DEFAULT_ENGINE,
    CorpusIdentity,
    Fingerprint,
    KeptSize,
    ModelIdentity,
)
from fusestore.capture.engines.engine_registry import (
    check_engine,
    engine_capabilities,
    engine_class,
)
from fusestore.capture.engines.protocol import Engine, EngineJob
from fusestore.capture.settings import CaptureSettings, wants_bos
from fusestore.corpus.corpus import Corpus, supervision_of
from fusestore.corpus.document_encoder import DocumentEncoder
from fusestore.corpus.tokenize import corpus_tokens, store_corpus_tokens
from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.models.gguf_model import GgufModel
from fusestore.models.loading import pick_device
from fusestore.models.model import Model
from fusestore.models.precision import Dtype, choose_precision
from fusestore.models.quantization import check_quantization
from fusestore.progress import Reporter
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable


class CapturePlan:
    """Everything that a capture needs before its model is loaded.

    Attributes:
        model: the model.
        fingerprint: of the cache to make.
        kept: which tokens have a row.
        dtype_reason: the reason for its dtype; None if the settings name the dtype.
    """

    def __init__(
        self,
        model: Model,
        fingerprint: Fingerprint,
        read_tokens: Callable[[], TokenTable],
        kept: KeptRows,
        dtype_reason: str | None,
    ) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.kept = kept
        self.dtype_reason = dtype_reason
        self._read_tokens = read_tokens

    @cached_property
    def tokens(self) -> TokenTable:
        """The tokens that the model reads; a complete cache does not need them.

        Raises:
            CorruptionError: the kept tokens are damaged.
        """
        return self._read_tokens()


def plan_capture(
    store: Store,
    name: str,
    model: Model,
    corpus: Corpus,
    settings: CaptureSettings,
    *,
    keep_tokens: bool = True,
) -> CapturePlan:
    """Plan a capture, without loading the model.

    Args:
        store: holds the corpus and receives the cache.
        name: the cache's name.
        model: the model.
        corpus: the documents.
        settings: of the capture.
        keep_tokens: store the tokens with the corpus; otherwise nothing is written.

    Raises:
        NotFoundError, InvalidInputError, IncompatibleError: see `capture`.
    """
    check_engine(settings.engine, settings.rule)
    capabilities = engine_capabilities(settings.engine)
    if capabilities.gguf:
        model = GgufModel(model)
    elif settings.engine == DEFAULT_ENGINE and not (store.cache(name) / "manifest.json").exists():
        check_quantization(model.description, settings.quantization, name)
    tokenizer = model.tokenizer
    wanted_bos = wants_bos(settings.bos, tokenizer.adds_bos, tokenizer.bos_id is not None)
    encoder = DocumentEncoder.of(corpus, tokenizer, add_bos=wanted_bos)
    if settings.top_k > model.vocab_size:
        raise InvalidInputError(
            f"top_k is {settings.top_k}, but {name} has a vocabulary of {model.vocab_size}. "
            f"Choose at most {model.vocab_size}."
        )
    read_tokens: Callable[[], TokenTable]
    if keep_tokens:
        stored = store_corpus_tokens(store, corpus, tokenizer, wanted_bos)
        offsets, read_tokens = stored.document_offsets, cache(stored.table)
    else:
        table = corpus_tokens(store, corpus, tokenizer, wanted_bos, keep=False)
        offsets, read_tokens = table.document_offsets, lambda: table
    _check_lengths(offsets, model.context, name)
    if len(tokenizer) > model.vocab_size:
        _check_ids(read_tokens(), model, corpus, name)
    kept, kept_size = KeptRows.all(int(offsets[-1])), None
    if settings.only == "supervised":
        kept = supervised_rows(corpus, read_tokens())
        kept_size = KeptSize(num_rows=kept.num_rows, num_runs=len(kept.runs))
    dtype, dtype_reason = _settle_dtype(store, name, settings)
    fingerprint = Fingerprint(
        source=name,
        model=ModelIdentity(
            # The weights of a server cannot be read, so the configuration stands for them.
            spec_digest=model.digest if capabilities.local_weights else model.config_digest,
            architecture=model.architecture,
            vocab_size=model.vocab_size,
        ),
        tokenizer_digest=tokenizer.digest,
        tokenizer_length=len(tokenizer),
        corpus=CorpusIdentity(name=corpus.name, digest=corpus.manifest.digest),
        add_bos=encoder.add_bos,
        template=encoder.template,
        only=settings.only,
        kept=kept_size,
        selection=settings.selection,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.rule.seed,
        profile=settings.profile,
        logprob_step=settings.grid,
        engine=settings.engine,
        served_model=settings.served_model,
        known_tail=capabilities.known_tail,
        dtype=dtype,
        quantization=settings.quantization,
        max_length=int(np.diff(offsets).max(initial=1)),
        on_nan=settings.on_nan,
        rows_per_shard=settings.rows_per_shard,
        rows_per_chunk=settings.rows_per_chunk,
        num_documents=len(offsets) - 1,
        num_tokens=int(offsets[-1]),
    )
    begun = _named_as_begun(store, name, fingerprint)
    return CapturePlan(model, begun, read_tokens, kept, dtype_reason)


def supervised_rows(corpus: Corpus, tokens: TokenTable) -> KeptRows:
    """The rows that a fusion over a corpus of conversations may use.

    Args:
        corpus: the corpus.
        tokens: of all its documents.

    Raises:
        InvalidInputError: the corpus holds texts, or nothing in it is trained on.
    """
    supervision = supervision_of(corpus)
    if supervision is None:
        raise InvalidInputError(
            f"only is supervised, but corpus {corpus.name!r} holds texts, of which every token is "
            "trained on. Leave the setting out: supervised is for corpora of conversations."
        )
    used = supervision.used_rows(tokens, np.arange(tokens.num_documents))
    if not used.any():
        raise InvalidInputError(
            f"only is supervised, but no turn of corpus {corpus.name!r} is trained on, so there "
            "is no row to keep. Build the corpus with another --train-on."
        )
    return KeptRows.where(used)


def _named_as_begun(store: Store, name: str, fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint with the names that a begun cache and its corpus had when it was begun.

    Artifacts may be renamed since: the corpus is the same if its digest is.
    """
    stored = Fingerprint.load_if_sound(store.cache(name) / "fingerprint.json")
    if stored is None or stored.corpus.digest != fingerprint.corpus.digest:
        return fingerprint
    return fingerprint.model_copy(update={"source": stored.source, "corpus": stored.corpus})


def _settle_dtype(
    store: Store, name: str, settings: CaptureSettings
) -> tuple[Dtype | None, str | None]:
    """The dtype of a cache, and the reason for it if the settings say `auto`."""
    capabilities = engine_capabilities(settings.engine)
    if capabilities.gguf or not capabilities.local_weights:
        if settings.dtype != "auto":
            decides = "llama.cpp" if capabilities.gguf else "its server"
            raise InvalidInputError(
                f"dtype is {settings.dtype}, but with engine {settings.engine} {decides} decides. "
                "Leave dtype out, or at auto."
            )
        return None, None
    if settings.dtype != "auto":
        return settings.dtype, None
    stored_dtype = _stored_dtype(store, name)
    if stored_dtype is not None:
        return stored_dtype, "this cache was begun with it"
    return choose_precision(pick_device(settings.device))


def _stored_dtype(store: Store, name: str) -> Dtype | None:
    """The dtype that the first writer of a cache chose; None if there is no cache yet."""
    try:
        return Fingerprint.load(store.cache(name) / "fingerprint.json").dtype
    except NotFoundError:
        return None


def adopt_dtype(
    store: Store, name: str, plan: CapturePlan, settings: CaptureSettings
) -> CapturePlan:
    """The plan with the dtype of the stored fingerprint, if the settings say `auto`."""
    dtype, reason = _settle_dtype(store, name, settings)
    fingerprint = plan.fingerprint.model_copy(update={"dtype": dtype})
    return CapturePlan(plan.model, fingerprint, lambda: plan.tokens, plan.kept, reason)


def report_dtype(plan: CapturePlan, name: str, reporter: Reporter) -> None:
    """Report the dtype of a capture and its reason, unless the settings name the dtype."""
    if plan.dtype_reason is not None:
        reporter.line(f"{name}: dtype {plan.fingerprint.dtype} ({plan.dtype_reason})")


def start_engine(
    plan: CapturePlan, settings: CaptureSettings, name: str, reporter: Reporter
) -> Engine:
    """Start the engine of a plan; see `Engine.start` for errors."""
    engine = engine_class(settings.engine)
    if settings.tensor_parallel:
        from fusestore.capture.engines.tensor_parallel_engine import TensorParallelEngine

        engine = TensorParallelEngine
    return engine.start(engine_job(plan, settings, name, reporter))


def engine_job(
    plan: CapturePlan, settings: CaptureSettings, name: str, reporter: Reporter
) -> EngineJob:
    """What the engine of a plan is started for."""
    fingerprint = plan.fingerprint
    return EngineJob(
        name=name,
        model=plan.model,
        settings=settings,
        vocab_size=fingerprint.model.vocab_size,
        max_length=fingerprint.max_length,
        dtype=fingerprint.dtype,
        read_tokens=lambda: plan.tokens,
        reporter=reporter,
    )


def reference_engine(
    plan: CapturePlan, settings: CaptureSettings, name: str, reporter: Reporter
) -> Engine:
    """Start transformers, in float32, with the model whose rows another engine computes."""
    fingerprint = plan.fingerprint.model_copy(update={"dtype": "float32"})
    transformers = settings.model_copy(update={"engine": DEFAULT_ENGINE})
    own = CapturePlan(plan.model, fingerprint, lambda: plan.tokens, plan.kept, None)
    return start_engine(own, transformers, name, reporter)


def _check_lengths(offsets: npt.NDArray[np.int64], context: int | None, name: str) -> None:
    lengths = np.diff(offsets)
    if context is None or len(lengths) == 0 or lengths.max() <= context:
        return
    longest = int(lengths.argmax())
    raise IncompatibleError(
        f"Document {longest} has {int(lengths[longest]):,} tokens, more than the context of {name} "
        f"({context:,}). Build the corpus with this model among its tokenizers and a max length of "
        f"at most {context:,}, so that long documents are split and none is cut."
    )


def _check_ids(tokens: TokenTable, model: Model, corpus: Corpus, name: str) -> None:
    """Check that the model has every id that occurs.

    A tokenizer with more ids than the model is ordinary: tokens were added that no text has.
    """
    outside = np.flatnonzero(tokens.token_ids >= model.vocab_size)
    if len(outside) == 0:
        return
    token_id = int(tokens.token_ids[outside[0]])
    document = int(np.searchsorted(tokens.document_offsets, outside[0], side="right")) - 1
    text = model.tokenizer.vocabulary.token_bytes[token_id].decode(errors="replace")
    raise IncompatibleError(
        f"Document {document} ({corpus.describe(document)}) holds token {token_id} ({text!r}), but "
        f"the output of {name} has {model.vocab_size:,} ids, and its tokenizer "
        f"{len(model.tokenizer):,}. Give the model that this tokenizer belongs to, or leave the "
        "token's text out of the corpus."
    )
