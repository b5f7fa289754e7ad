"""Decoders for pixels behind a vision transformer."""
