"""What a run has trained, in networks as their libraries make them: no line of fedsim is needed to use it."""
