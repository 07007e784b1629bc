"""Prefetching of fused datasets' shards to this machine, verified and within a size limit."""
