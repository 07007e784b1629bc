"""Managing a store: what it holds and why, and removing, renaming and clearing up."""
