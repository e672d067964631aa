"""A dataset directory, as data_prep writes it and training reads it. No torch."""
