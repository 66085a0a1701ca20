"""Turns documents into a data set of questions and passages: `python -m embexp.mine`."""
