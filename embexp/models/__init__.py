"""Base models: where they come from, what must be known of them, what may be put behind them."""
