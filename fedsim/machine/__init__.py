"""Arithmetic, memory and files of the machine."""
