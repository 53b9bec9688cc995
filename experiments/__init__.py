"""One file per question; results beside them."""
