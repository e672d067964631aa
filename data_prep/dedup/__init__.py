"""Near duplicates, evaluation pictures and repeated captions of a finished dataset: weight 0."""
