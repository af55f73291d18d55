"""Speech: from files or synthetic voices (`sources`, `commands`, `prepared`) to batches, features and augmentation."""
