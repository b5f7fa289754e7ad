"""Image encoders, heads and LoRA layers."""
