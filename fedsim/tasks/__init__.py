"""What a data set's inputs are for: losses and metrics."""
