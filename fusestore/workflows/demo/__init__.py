"""The demonstration: its fusion.toml, its student, and the packages that it needs."""
