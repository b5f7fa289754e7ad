"""One thread per process: several tests run beside each other, and sums inside torch depend on the threads."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
