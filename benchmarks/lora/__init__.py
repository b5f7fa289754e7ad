"""What LoRA costs, of several kinds, in turns in one process."""
