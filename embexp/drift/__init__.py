"""The command `python -m embexp.drift`: what has changed since a run, and whether it matters."""
