"""Fine-tunes a base model: losses, the trainer, looks at dev, checkpoints."""
