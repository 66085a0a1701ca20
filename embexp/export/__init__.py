"""`python -m embexp.export`: a run's model in another format, and its scores there. `cli` is the command."""
