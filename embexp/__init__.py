"""Fine-tune an embedding model on your documents and learn honestly whether it got better."""

__version__ = "0.1.0"
