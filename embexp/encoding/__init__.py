"""Texts to vectors: cut into parts of like length, on all cores and processes, checked."""
