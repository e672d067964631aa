"""Image-text corpora in, dataset directories out. Runs no model but for `embed`."""
