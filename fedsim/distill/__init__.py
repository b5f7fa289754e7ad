"""Distilling a sub-model."""
