"""Experiments: one file per question, with the results beside them."""
