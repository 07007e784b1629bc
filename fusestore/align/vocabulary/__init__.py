"""Vocabulary maps: source token id to target token id."""
