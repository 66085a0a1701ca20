"""`python -m embexp.compare`: one table and one page over many runs. `cli` is the command; reads run folders alone."""
