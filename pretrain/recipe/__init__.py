"""The recipe: every option of a training job, and its stages."""
