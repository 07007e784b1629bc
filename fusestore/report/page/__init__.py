"""The page of a store: everything that people look at, in one file of HTML."""
