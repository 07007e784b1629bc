"""Fused datasets as streams from any storage."""
