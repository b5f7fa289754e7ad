"""Commands that print the numbers in docs/. Run from the repository's root."""
