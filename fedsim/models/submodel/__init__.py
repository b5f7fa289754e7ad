"""What clients hold in place of the whole model."""
