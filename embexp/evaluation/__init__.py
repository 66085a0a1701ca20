"""Finds passages and says how well: exact search, BM25, measures, and whether a difference is real."""
