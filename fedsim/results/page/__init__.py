"""Runs as one HTML page that needs no network: what is in it, and how it is written."""
