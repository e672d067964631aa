"""Near duplicates, evaluation pictures and repeated captions of a finished dataset: weight 0."""

NOBODY = -1  # in place of the row that is kept for another
