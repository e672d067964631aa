"""One page to look at a dataset by."""
