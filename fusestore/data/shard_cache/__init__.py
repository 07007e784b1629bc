"""Shards of fused datasets brought to this machine: ahead of their use, verified, within a limit.

Nothing here imports torch, so that the helper of a forked process (`fetch.helper`) starts quickly.
"""
