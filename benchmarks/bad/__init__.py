"""What becomes of inputs and run folders that are damaged; commands as in the folder above."""
