"""One file a question; results beside them."""
