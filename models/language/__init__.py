"""Language models, their checkpoints and their tasks."""
