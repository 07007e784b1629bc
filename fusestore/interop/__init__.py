"""Rows in the layouts of other tools: importers, which make a cache, and exporters."""
