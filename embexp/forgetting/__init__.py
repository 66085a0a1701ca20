"""What training costs elsewhere, and its repair: a guard set, and weights mixed with the base's."""
