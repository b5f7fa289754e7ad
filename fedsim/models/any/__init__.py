"""LoRA on the layers of any torch module."""
