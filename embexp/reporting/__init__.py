"""What a person reads of a run, as Markdown: the report, the model card, lines that use the model."""
