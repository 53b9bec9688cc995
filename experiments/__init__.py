"""Experiments: each file answers one question. The results are in the folder ``results``."""
