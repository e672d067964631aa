"""From a corpus to a dataset directory."""
