"""Several processes that carry one run out together: `joining` brings them together, `shares` splits a batch up."""
