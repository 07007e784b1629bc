"""Publishing: artifacts with a card that says what they are, on the Hub or beside a store."""
