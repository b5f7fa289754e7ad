"""Files of the clinic, and how a folder of them becomes pictures with a manifest (``launch.py import``)."""
