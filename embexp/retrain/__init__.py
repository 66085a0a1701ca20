"""The command `python -m embexp.retrain`: a new model of today's documents, promoted only where it is better."""
