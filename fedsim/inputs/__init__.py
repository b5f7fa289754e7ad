"""Images and texts on the device."""
