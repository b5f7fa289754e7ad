"""Passes that PyTorch takes in many steps on a CPU, in C++ and compiled for the processor at hand; see build.py."""
