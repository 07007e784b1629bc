"""Views of an alignment for people."""
