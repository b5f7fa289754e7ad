"""The words of a config."""
