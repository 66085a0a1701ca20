"""`python -m embexp.search`: what a run's models find for a question. `cli` is the command."""
