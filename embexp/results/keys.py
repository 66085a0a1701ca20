"""The keys of result.json: `result` writes them, `runs` expects them and can't import what `result` takes.

LATER: which results of earlier versions have not.
"""

KEYS = [
    "status", "error", "metric", "base", "tuned", "bm25", "reranker", "delta", "slices", "verdict", "caveat", "notes",
    "counts", "seconds", "fingerprint", "versions", "seed", "git", "names", "config", "forgetting", "merge",
    "fully_tuned", "arms", "arms_verdict", "learning_curve",
]  # fmt: skip
LATER = ["names", "reranker", "forgetting", "merge", "fully_tuned", "arms", "arms_verdict", "learning_curve"]
