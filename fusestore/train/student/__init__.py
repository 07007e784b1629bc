"""The model that is trained: loaded, checked, adapted, wrapped with its loss, published."""
