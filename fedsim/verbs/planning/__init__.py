"""What a run will take on other numbers of ranks: measured here on a few blocks, and worked out for the rest."""
