"""From a dataset to batches on the device: order, decoding, collation, loading."""
