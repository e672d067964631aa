"""Image-text corpora in, dataset directories out. Never imports torch."""
