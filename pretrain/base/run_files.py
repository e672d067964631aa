"""The files of a run folder, by the names that those who write and those who read them share."""

RECIPE_FILE = "recipe.yaml"  # the resolved recipe
METRICS_FILE = "metrics.jsonl"  # the truth; TensorBoard mirrors it
WATCHED_FILE = "watched.jsonl"  # evaluations by another job, of checkpoints
EVALUATION_FILE = "evaluation.json"
GALLERY_FILE = "gallery.json"
REPORT_FILE = "report.html"
CHECKPOINTS = "checkpoints"
STAGES = "stages"
PROFILE = "profile"
