"""Workflows over several stages: pipeline, comparison, verification, repair, sharing."""
