"""The run folder: logs, records, pictures."""
