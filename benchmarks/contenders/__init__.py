"""The simulators that `benchmarks.throughput` compares, one module each with the same command line."""
