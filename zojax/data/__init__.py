"""Text classification data: reading (`text`), tokenisation (`tokenize`) and batches (`pipeline`)."""
