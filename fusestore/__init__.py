"""fusestore: capture, align and fuse next-token distributions of several language models.

```python
import fusestore as fs

store = fs.open_store("my.store")
fused = store.fuse("demo", fs.Recipe(sources=["smollm2", "gemma3"], target="smollm2"))
dataset = fused.dataset()
loss = fs.losses.fusion_loss(logits, fs.data.collate([dataset[0], dataset[1]]))
```

Importing this module imports nothing heavy; every name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusestore.errors import FusestoreError
from fusestore.version import __version__

if TYPE_CHECKING:
    from fusestore import align, data, losses, stages, train
    from fusestore.align.manifest import AlignmentManifest
    from fusestore.align.settings import AlignSettings
    from fusestore.align.stored import Alignment
    from fusestore.api import Store, open_store
    from fusestore.cache.kept_rows import KeptRows
    from fusestore.cache.manifest import CacheManifest, Fingerprint
    from fusestore.cache.reader import Cache, open_cache
    from fusestore.cache.rows import Rows
    from fusestore.cache.rule import Rule
    from fusestore.capture.engines.engine_registry import register_engine
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.corpus import Corpus, open_corpus
    from fusestore.corpus.manifest import CorpusManifest
    from fusestore.corpus.settings import CorpusSettings
    from fusestore.data.dataset import FusedDataset, open_fused
    from fusestore.data.fused import Fused
    from fusestore.data.mixture import FusedMixture
    from fusestore.data.on_demand import open_recipe
    from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
    from fusestore.forecast.forecast import Forecast
    from fusestore.forecast.settings import ForecastSettings
    from fusestore.fuse.manifest import FusedManifest, FusionPlan
    from fusestore.fuse.recipe import Recipe, RecipeSource
    from fusestore.fuse.strategies import register_strategy
    from fusestore.interop.export import Exported
    from fusestore.interop.settings import ImportSettings
    from fusestore.losses.divergence_registry import register_divergence
    from fusestore.merge.manifest import MergedModel
    from fusestore.merge.settings import MergeSettings
    from fusestore.models.model import Model
    from fusestore.models.placement import Placement
    from fusestore.models.target import Target
    from fusestore.plugins import load_plugins
    from fusestore.progress import Reporter
    from fusestore.report.page.content import StoreReport
    from fusestore.report.page.settings import ReportSettings
    from fusestore.storage.location import Location
    from fusestore.storage.objects import ListedFile
    from fusestore.store.details import Details
    from fusestore.store.findings import Finding
    from fusestore.store.licenses import License
    from fusestore.store.receipts import ShardPlan
    from fusestore.store.registry import Artifact
    from fusestore.store.result import StageResult
    from fusestore.store.shown_table import ShownTable
    from fusestore.tokenizers.conversation import Conversation, Turn
    from fusestore.tokenizers.token_table import TokenTable
    from fusestore.tokenizers.tokenizer import Tokenizer
    from fusestore.tokenizers.vocabulary import Spelling, Vocabulary
    from fusestore.train.manifest import TrainedModel
    from fusestore.train.settings import LoraSettings, TrainSettings
    from fusestore.workflows import sharing
    from fusestore.workflows.comparison import Comparison
    from fusestore.workflows.managing.garbage import Garbage, GarbageSettings
    from fusestore.workflows.managing.removal import Removal
    from fusestore.workflows.managing.renaming import Renaming
    from fusestore.workflows.managing.tree import Tree
    from fusestore.workflows.managing.usage import Usage
    from fusestore.workflows.publishing.run import Published
    from fusestore.workflows.publishing.settings import PublishSettings
    from fusestore.workflows.repair import Repair
    from fusestore.workflows.sharing.run import Shared
    from fusestore.workflows.sharing.settings import CopySettings

__all__ = [
    "AlignSettings",
    "Alignment",
    "AlignmentManifest",
    "Artifact",
    "Cache",
    "CacheManifest",
    "CaptureSettings",
    "Comparison",
    "Conversation",
    "CopySettings",
    "Corpus",
    "CorpusManifest",
    "CorpusSettings",
    "Details",
    "Exported",
    "Finding",
    "Fingerprint",
    "Forecast",
    "ForecastSettings",
    "Fused",
    "FusedDataset",
    "FusedManifest",
    "FusedMixture",
    "FusestoreError",
    "FusionPlan",
    "Garbage",
    "GarbageSettings",
    "ImportSettings",
    "KeptRows",
    "License",
    "ListedFile",
    "Location",
    "LoraSettings",
    "MergeSettings",
    "MergedModel",
    "Model",
    "Placement",
    "PublishSettings",
    "Published",
    "Recipe",
    "RecipeSource",
    "Removal",
    "Renaming",
    "Repair",
    "ReportSettings",
    "Reporter",
    "Rows",
    "Rule",
    "ShardPlan",
    "Shared",
    "ShownTable",
    "Spelling",
    "StageResult",
    "Store",
    "StoreReport",
    "StreamingFusedDataset",
    "Target",
    "TokenTable",
    "Tokenizer",
    "TrainSettings",
    "TrainedModel",
    "Tree",
    "Turn",
    "Usage",
    "Vocabulary",
    "__version__",
    "align",
    "data",
    "load_plugins",
    "losses",
    "open_cache",
    "open_corpus",
    "open_fused",
    "open_recipe",
    "open_store",
    "register_divergence",
    "register_engine",
    "register_strategy",
    "sharing",
    "stages",
    "train",
]

_SUBPACKAGES = {
    "align": "fusestore.align",
    "data": "fusestore.data",
    "losses": "fusestore.losses",
    "sharing": "fusestore.workflows.sharing",
    "stages": "fusestore.stages",
    "train": "fusestore.train",
}
_HOMES = {
    "Details": "fusestore.store.details",
    "Garbage": "fusestore.workflows.managing.garbage",
    "GarbageSettings": "fusestore.workflows.managing.garbage",
    "Removal": "fusestore.workflows.managing.removal",
    "Renaming": "fusestore.workflows.managing.renaming",
    "Tree": "fusestore.workflows.managing.tree",
    "Usage": "fusestore.workflows.managing.usage",
    "AlignSettings": "fusestore.align.settings",
    "Alignment": "fusestore.align.stored",
    "AlignmentManifest": "fusestore.align.manifest",
    "Cache": "fusestore.cache.reader",
    "CacheManifest": "fusestore.cache.manifest",
    "CaptureSettings": "fusestore.capture.settings",
    "Comparison": "fusestore.workflows.comparison",
    "CopySettings": "fusestore.workflows.sharing.settings",
    "Conversation": "fusestore.tokenizers.conversation",
    "Corpus": "fusestore.corpus.corpus",
    "CorpusManifest": "fusestore.corpus.manifest",
    "CorpusSettings": "fusestore.corpus.settings",
    "Exported": "fusestore.interop.export",
    "Finding": "fusestore.store.findings",
    "Fingerprint": "fusestore.cache.manifest",
    "Forecast": "fusestore.forecast.forecast",
    "ForecastSettings": "fusestore.forecast.settings",
    "Fused": "fusestore.data.fused",
    "FusedDataset": "fusestore.data.dataset",
    "FusedManifest": "fusestore.fuse.manifest",
    "FusedMixture": "fusestore.data.mixture",
    "FusionPlan": "fusestore.fuse.manifest",
    "ImportSettings": "fusestore.interop.settings",
    "KeptRows": "fusestore.cache.kept_rows",
    "License": "fusestore.store.licenses",
    "ListedFile": "fusestore.storage.objects",
    "Location": "fusestore.storage.location",
    "LoraSettings": "fusestore.train.settings",
    "MergeSettings": "fusestore.merge.settings",
    "MergedModel": "fusestore.merge.manifest",
    "Model": "fusestore.models.model",
    "Placement": "fusestore.models.placement",
    "PublishSettings": "fusestore.workflows.publishing.settings",
    "Published": "fusestore.workflows.publishing.run",
    "Recipe": "fusestore.fuse.recipe",
    "RecipeSource": "fusestore.fuse.recipe",
    "Repair": "fusestore.workflows.repair",
    "ReportSettings": "fusestore.report.page.settings",
    "Reporter": "fusestore.progress",
    "StoreReport": "fusestore.report.page.content",
    "Rows": "fusestore.cache.rows",
    "Rule": "fusestore.cache.rule",
    "ShardPlan": "fusestore.store.receipts",
    "Shared": "fusestore.workflows.sharing.run",
    "ShownTable": "fusestore.store.shown_table",
    "Spelling": "fusestore.tokenizers.vocabulary",
    "StageResult": "fusestore.store.result",
    "Store": "fusestore.api",
    "StreamingFusedDataset": "fusestore.data.streaming.streaming_dataset",
    "Target": "fusestore.models.target",
    "Artifact": "fusestore.store.registry",
    "TokenTable": "fusestore.tokenizers.token_table",
    "Tokenizer": "fusestore.tokenizers.tokenizer",
    "Turn": "fusestore.tokenizers.conversation",
    "TrainSettings": "fusestore.train.settings",
    "TrainedModel": "fusestore.train.manifest",
    "Vocabulary": "fusestore.tokenizers.vocabulary",
    "load_plugins": "fusestore.plugins",
    "open_cache": "fusestore.cache.reader",
    "open_corpus": "fusestore.corpus.corpus",
    "open_fused": "fusestore.data.dataset",
    "open_recipe": "fusestore.data.on_demand",
    "open_store": "fusestore.api",
    "register_divergence": "fusestore.losses.divergence_registry",
    "register_engine": "fusestore.capture.engines.engine_registry",
    "register_strategy": "fusestore.fuse.strategies",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name in _SUBPACKAGES:
        return importlib.import_module(_SUBPACKAGES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fusestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
