"""Whole networks in training, beside others."""
