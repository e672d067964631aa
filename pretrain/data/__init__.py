"""Data: from a dataset directory to batches, in an order that is arithmetic."""
