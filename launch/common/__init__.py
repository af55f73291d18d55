"""What the programs share: what a config may hold, and from it to data, model and method."""
