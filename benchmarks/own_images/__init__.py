"""What images of your own take to import and to check; commands as in the folder above."""
