"""What `fusestore run` would do, from the file and the store's manifests; no model is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from fusestore.align.settings import alignment_name
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.workflows.fusion_config import FusionConfig

PlannedState = Literal["already there", "continue", "make", "make again", "if needed"]


class PlannedStage(Frozen):
    """One stage of a run.

    Attributes:
        stage: what the stage makes, as the run names it.
        artifact: `kind/name`.
        state: already there: it is complete, and the run takes it if it was made with these
            settings, else it says what differs. continue: it was begun. make: it is missing. make
            again: something that it is made from is made. if needed: it is made if source and
            target have different tokenizers, which only the models tell.
    """

    stage: str
    artifact: str
    state: PlannedState


class PlannedRun(Frozen):
    """The stages of a run; what `fusestore run --dry-run --json` prints.

    Attributes:
        store: its address.
        stages: in their order.
    """

    store: str
    stages: tuple[PlannedStage, ...]


def plan_run(config: FusionConfig) -> PlannedRun:
    """The stages of a fusion.toml, and which of their artifacts exist; writes nothing.

    Args:
        config: the file's content.

    Raises:
        AccessDeniedError, StorageError: the storage failed.
    """
    store = Store.open(config.store, config.storage_options)
    return PlannedRun(store=str(store.location), stages=tuple(_stages(config, _Planned(store))))


class _Planned:
    """Plans one stage after the other, and remembers what will be made."""

    def __init__(self, store: Store) -> None:
        exists = store.location.exists()
        self._states = {each.path: each.state for each in list_artifacts(store)} if exists else {}
        self._made: set[str] = set()

    def stage(
        self, title: str, path: str, after: Iterable[str], *, maybe: bool = False
    ) -> PlannedStage:
        """The stage that makes an artifact out of others, named by `kind/name`."""
        existing = self._states.get(path)
        state: PlannedState
        if existing is None:
            state = "if needed" if maybe else "make"
        elif self._made.intersection(after):
            state = "make again"
        elif existing == "complete":
            state = "already there"
        else:
            state = "continue"
        if state not in ("already there", "if needed"):
            self._made.add(path)
        return PlannedStage(stage=f"{title} {path.partition('/')[2]}", artifact=path, state=state)


def _stages(config: FusionConfig, planned: _Planned) -> Iterator[PlannedStage]:
    corpus = f"corpus/{config.corpus.name}"
    yield planned.stage("corpus", corpus, ())
    caches = [f"cache/{name}" for name in config.captured]
    for cache in caches:
        yield planned.stage("cache", cache, (corpus,))
    aligned = set()
    for name, recipe in config.fuse.items():
        needed = list(caches)
        for source in recipe.sources:
            if source.cache == recipe.target:
                continue
            alignment = source.alignment or alignment_name(source.cache, str(recipe.target))
            needed.append(f"alignment/{alignment}")
            if alignment not in aligned:
                aligned.add(alignment)
                made_from = (f"cache/{source.cache}", corpus)
                yield planned.stage("alignment", needed[-1], made_from, maybe=True)
        yield planned.stage("fused dataset", f"fused/{name}", needed)
    for name, run in config.train.items():
        yield planned.stage("model", f"model/{name}", (f"fused/{run.fused}",))
    for name, merge in config.merge.items():
        yield planned.stage("model", f"model/{name}", [f"model/{run}" for run in merge.models])
