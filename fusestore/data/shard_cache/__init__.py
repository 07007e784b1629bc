"""Shards of fused datasets brought to this machine ahead of their use, verified, within a limit."""
