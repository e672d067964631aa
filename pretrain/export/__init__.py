"""Export: a trained CLIP as a folder that this package and other libraries load."""
