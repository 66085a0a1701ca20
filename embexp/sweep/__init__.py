"""Sweeps: Optuna chooses what the trials of a multirun try, prunes them, and keeps the study where all can reach it."""
