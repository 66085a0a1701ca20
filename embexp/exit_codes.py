"""Exit codes: of launched jobs, of a gate that is not passed, of drift's verdicts and of retraining's outcomes.

Hydra keeps no return value of a multirun. Filled by `launcher` and by sweeps, read by `cli`, which need not load them
for it. The code of a gate or a verdict is none that a shell, Python or argparse ends a program with.
"""

from collections.abc import Sequence

of_jobs: list[int] = []
OF_DRIFT = {"ok": 0, "watch": 3, "retrain": 4}
FORGOTTEN = 5  # the run completed, and has lost more on its guard set than max_forgetting
OF_RETRAINING = {"promoted": 0, "nothing to do": 0, "not promoted": 5}


def of_all(codes: Sequence[int]) -> int:
    """The code of several runs: 1 where one failed, else FORGOTTEN where one has forgotten too much."""
    kinds = {code for code in codes if code}
    return 0 if not kinds else FORGOTTEN if kinds == {FORGOTTEN} else 1
