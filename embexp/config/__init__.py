"""Checks a config and its command line before anything heavy is imported; makes what its nodes name."""
