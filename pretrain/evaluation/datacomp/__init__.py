"""DataComp's evaluation: 38 sets by their names, each with its metric, and the mean over them."""
