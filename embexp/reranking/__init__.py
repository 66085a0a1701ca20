"""A cross-encoder that orders the first passages anew: trained or only loaded, and measured."""
