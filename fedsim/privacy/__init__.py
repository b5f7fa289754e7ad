"""Layers that wrap every method: what clients let out passes through them."""
