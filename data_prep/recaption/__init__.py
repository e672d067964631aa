"""New captions beside a dataset."""
