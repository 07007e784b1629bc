"""Several aligned distributions into one per target token."""
