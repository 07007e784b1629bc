"""The summary of a pipeline run."""
