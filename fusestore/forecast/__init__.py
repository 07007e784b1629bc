"""What fusing would bring, from the caches alone."""
