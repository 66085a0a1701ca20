"""wandb dashboards that compare losses: `python -m embexp.dashboard entity/project` makes a workspace and a report."""
