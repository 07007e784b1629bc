"""A capture by all processes that share a model: rank 0 captures, the others follow."""

from __future__ import annotations

from collections.abc import Callable

from fusestore.cache.reader import Cache, open_cache
from fusestore.capture.capture_plan import engine_job, plan_capture
from fusestore.capture.engines.protocol import EngineJob
from fusestore.capture.engines.tensor_parallel_engine import follow, leading
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import Corpus
from fusestore.models.model import Model
from fusestore.models.precision import Dtype
from fusestore.models.rank_group import rank_group
from fusestore.progress import SilentReporter
from fusestore.store.layout import Store
from fusestore.store.result import StageResult


def capture_together(
    store: Store,
    name: str,
    model: Model,
    corpus: Corpus,
    settings: CaptureSettings,
    capture_alone: Callable[[], StageResult[Cache]],
) -> StageResult[Cache]:
    """Capture a cache with the processes that torchrun started; all of them call this.

    Args:
        store: receives the cache, from rank 0.
        name: the cache's name.
        model: the model.
        corpus: the documents.
        settings: of the capture.
        capture_alone: the capture, which rank 0 carries out.

    Raises:
        InvalidInputError: torchrun did not start several processes.
        EngineError: another process failed.
    """

    def job(dtype: Dtype | None) -> EngineJob:
        # Rank 0 has decided the dtype, and has stored the tokens, so that this only reads.
        named = settings if dtype is None else settings.model_copy(update={"dtype": dtype})
        plan = plan_capture(store, name, model, corpus, named)
        return engine_job(plan, named, name, SilentReporter())

    with rank_group() as rank:
        if rank == 0:
            with leading():
                return capture_alone()
        follow(job)
    return StageResult(open_cache(store, name), created=True)
