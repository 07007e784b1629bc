"""The distribution cache: one source's top-k log-probabilities over one corpus."""
