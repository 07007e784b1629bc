"""Bytes: where they lie, and how they are read and published."""
