"""Running a source model over a corpus and keeping its next-token distributions."""
