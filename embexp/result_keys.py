"""The keys of result.json: `result` writes them, `runs` expects them and can't import what `result` takes."""

KEYS = [
    "status", "error", "metric", "base", "tuned", "bm25", "delta", "slices", "verdict", "caveat", "notes", "counts",
    "seconds", "fingerprint", "versions", "seed", "git", "names", "config", "arms", "arms_verdict", "learning_curve",
]  # fmt: skip
LATER = ["names", "arms", "arms_verdict", "learning_curve"]  # that results of earlier versions lack
