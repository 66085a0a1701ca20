"""Where Hydra looks for launchers: it accepts only classes of the package hydra_plugins. The work is in
embexp.launcher."""

from embexp import launcher


class ProcessLauncher(launcher.ProcessLauncher):
    """Named by conf/hydra/launcher/embexp.yaml."""
