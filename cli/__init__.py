"""The `fusestore` command: it parses, calls one library function, and prints."""
