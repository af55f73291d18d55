"""Of language models: from the fields of a config to weights, tasks and prompts."""
