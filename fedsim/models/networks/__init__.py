"""Networks that begin with random weights."""
