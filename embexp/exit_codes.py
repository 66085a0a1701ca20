"""The exit codes of the jobs that this process has launched: Hydra keeps no return value of a multirun.

Filled by `launcher` and by sweeps, read by `cli`, which need not load them for it.
"""

of_jobs: list[int] = []
