"""Executors: several processes, on one machine or many, make the shards of one artifact.

An executor only starts processes. Each runs the same command on the same artifact, and they
divide its shards by the leases in the store (`fusestore.store.leases`). These are the whole
scheduler: there is no queue, and any process may die.
"""
