"""What launch.py does beside running."""
