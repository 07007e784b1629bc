"""Shards of fused datasets brought to this machine: ahead of their use, verified, within a limit.

Nothing here imports torch: fetching is done by a small process of its own (`fetch.server`), because
a forked DataLoader worker must not use s3fs and training should not share its interpreter.
"""
