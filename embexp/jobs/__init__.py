"""Runs as jobs in processes of their own: Hydra's launcher."""
