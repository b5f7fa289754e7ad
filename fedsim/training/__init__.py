"""What one client's training is made of."""
