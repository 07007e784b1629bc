"""A cache in the profile `fast`, which the kept store lacks: rows of another cache."""

import fusestore as fs
from fusestore.cache.writer import CacheWriter
from fusestore.store.layout import Store


def write_fast_cache(root):
    """Write the cache `fast` of the rows of the cache `exact`; returns its folder."""
    store = Store.open(root)
    exact = fs.open_cache(store, "exact")
    fingerprint = exact.fingerprint.model_copy(update={"profile": "fast"})
    writer = CacheWriter.create(store, "fast", fingerprint, exact.tokens, None)
    for shard in writer.missing_shards():
        start, stop = writer.plan.bounds(shard)
        writer.write_shard(shard, exact[start:stop])
    writer.finish({}, [])
    return root / "caches/fast"
