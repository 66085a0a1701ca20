"""`experiment=arms`: was tuning the right lever? Further ways to search on one report, with what they cost."""
