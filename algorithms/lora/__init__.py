"""Federated methods about LoRA: one file each."""
