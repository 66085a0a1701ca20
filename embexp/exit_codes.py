"""Exit codes: those of the jobs that this process has launched, of drift's verdicts and of retraining's outcomes.

Hydra keeps no return value of a multirun. Filled by `launcher` and by sweeps, read by `cli`, which need not load them
for it. A verdict's code is none that a shell, Python or argparse ends a program with.
"""

of_jobs: list[int] = []
OF_DRIFT = {"ok": 0, "watch": 3, "retrain": 4}
OF_RETRAINING = {"promoted": 0, "nothing to do": 0, "not promoted": 5}
