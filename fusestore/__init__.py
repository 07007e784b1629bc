"""fusestore: capture, align and fuse next-token distributions of several language models.

```python
import fusestore as fs

cache = fs.open_cache("s3://bucket/my.store", "smollm2")
dataset = fs.open_fused("s3://bucket/my.store", "demo")
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
    from fusestore import align, data, losses, train
    from fusestore.align.settings import AlignSettings
    from fusestore.align.stored import Alignment
    from fusestore.cache.reader import Cache, open_cache
    from fusestore.corpus.build import Corpus, open_corpus
    from fusestore.data.dataset import FusedDataset, open_fused
    from fusestore.data.fused import Fused
    from fusestore.data.on_demand import open_recipe
    from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
    from fusestore.forecast.forecast import Forecast
    from fusestore.forecast.settings import ForecastSettings
    from fusestore.fuse.recipe import Recipe, RecipeSource
    from fusestore.store.result import StageResult
    from fusestore.workflows import sharing

__all__ = [
    "AlignSettings",
    "Alignment",
    "Cache",
    "Corpus",
    "Forecast",
    "ForecastSettings",
    "Fused",
    "FusedDataset",
    "FusestoreError",
    "Recipe",
    "RecipeSource",
    "StageResult",
    "StreamingFusedDataset",
    "__version__",
    "align",
    "data",
    "losses",
    "open_cache",
    "open_corpus",
    "open_fused",
    "open_recipe",
    "sharing",
    "train",
]

_SUBPACKAGES = {
    "align": "fusestore.align",
    "data": "fusestore.data",
    "losses": "fusestore.losses",
    "sharing": "fusestore.workflows.sharing",
    "train": "fusestore.train",
}
_HOMES = {
    "AlignSettings": "fusestore.align.settings",
    "Alignment": "fusestore.align.stored",
    "Cache": "fusestore.cache.reader",
    "Corpus": "fusestore.corpus.build",
    "Forecast": "fusestore.forecast.forecast",
    "ForecastSettings": "fusestore.forecast.settings",
    "Fused": "fusestore.data.fused",
    "FusedDataset": "fusestore.data.dataset",
    "Recipe": "fusestore.fuse.recipe",
    "RecipeSource": "fusestore.fuse.recipe",
    "StageResult": "fusestore.store.result",
    "StreamingFusedDataset": "fusestore.data.streaming.streaming_dataset",
    "open_cache": "fusestore.cache.reader",
    "open_corpus": "fusestore.corpus.build",
    "open_fused": "fusestore.data.dataset",
    "open_recipe": "fusestore.data.on_demand",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name in _SUBPACKAGES:
        return importlib.import_module(_SUBPACKAGES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fusestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
