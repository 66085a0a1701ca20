"""What each process of a sweep or a multirun has imported when it starts: the forked get it from the one that forks.

Named by `workers`. Imports only: a matrix product here hangs the processes (OpenMP).
"""

from embexp import libraries

libraries.loaded()  # first, or what they say as they are imported is printed

from embexp import run  # noqa: E402, F401
from embexp.page import content  # noqa: E402, F401
from embexp.sweep import trial  # noqa: E402, F401
from embexp.training import fine_tuning, losses  # noqa: E402, F401
