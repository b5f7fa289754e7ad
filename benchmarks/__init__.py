"""Commands that print the numbers in the README. Run from the repository's root."""
