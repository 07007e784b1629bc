"""Engines: what computes the rows of a capture."""
