"""Who takes part, in which blocks, and which rank trains what."""
