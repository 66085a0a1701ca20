"""A server that speaks OpenAI's protocol, paid by the token: its settings, caps on costs, answers kept."""
