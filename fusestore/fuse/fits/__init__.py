"""Learned fusion: parameters that are fitted from caches alone, on a split of its own."""
