"""Fine-tune an embedding model on your documents and learn honestly whether it got better."""

import warnings

__version__ = "0.1.0"

# Hydra 1.4 and OmegaConf 2.4 warn of what 1.3 and 2.3 need: this goes when embexp asks for 1.4
for _message in (
    "The version_base parameter is deprecated",
    r"register_new_resolver\(\) is deprecated",
    r"hydra\.utils\.instantiate\(\) resolved",  # `components` holds each target against what is allowed first
):
    warnings.filterwarnings("ignore", _message, UserWarning, r"embexp\b")
