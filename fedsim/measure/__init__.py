"""What is measured: the global model, clients' scores, diagnostics, traffic."""
