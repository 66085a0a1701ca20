"""The command `python -m embexp.dashboard`: a workspace and a report in a wandb project, to compare its runs.

Checks arguments, package, key and project before anything is made; `dashboard.spec` says what it shows,
`dashboard.views` sends it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from embexp.cli import ends_with_one
from embexp.config.checks import nearest
from embexp.dashboard.spec import KEYS, PLACES, dashboard, shown
from embexp.errors import UserError, listed
from embexp.tracking import first_line, has_key

DESCRIPTION = "Make a saved workspace and a report in a wandb project that compare its runs, by loss for one."
EPILOG = """\
examples:
  python -m embexp.dashboard my-team/embexp                    recall at each k, by loss
  python -m embexp.dashboard my-team/embexp --metric ndcg@10 --by model
  python -m embexp.dashboard my-team/embexp --show             what it would make; sends nothing

Each call makes a new workspace and a new report; what is there stays as it is. docs/wandb.md has the same by hand.
"""
INSTALL = "pip install .[wandb-dashboard]"  # which brings both
NAME = re.compile(r"[^/\s]+/[^/\s]+")


def main() -> None:
    """Run the command line; exits with 0 when both are saved, else with 1."""
    arguments = _parser().parse_args()
    with ends_with_one():
        if not NAME.fullmatch(arguments.project):
            raise UserError(
                f"{arguments.project!r} is not entity/project, such as my-team/embexp: the two names after the host in "
                "the address of the project's page"
            )
        made = dashboard(arguments.metric, by=arguments.by, places=_places(arguments.at))
        if arguments.show:
            print(shown(made))
            return
        _require_package()
        _require_login()
        entity, project = arguments.project.split("/")
        with _explained(arguments.project):
            _require_project(entity, project)
            from embexp.dashboard import views

            print(f"workspace: {views.saved(views.workspace(made, entity=entity, project=project))}")
            print(f"report: {views.saved(views.report(made, entity=entity, project=project))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embexp.dashboard",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="entity/project", help="the wandb project that holds the runs")
    parser.add_argument("--metric", default="recall@10", help="what is compared (recall@10)")
    parser.add_argument("--by", default="loss", choices=KEYS, help="what groups the runs (loss)")
    places = ",".join(map(str, PLACES))
    parser.add_argument("--at", default=places, help=f"the k of the metric's panels ({places})")
    parser.add_argument("--show", action="store_true", help="print what would be made, and send nothing")
    return parser


def _places(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError as error:
        raise UserError(f"--at {words}: it takes numbers with commas between them, such as 1,10,100") from error


def _require_package() -> None:
    missing = [name for name in ("wandb", "wandb_workspaces") if find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} is not installed, which makes wandb dashboards: {INSTALL}")


def _require_login() -> None:
    import wandb

    if wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun", "disabled"):
        raise UserError(
            "wandb is set to work offline, but a dashboard is made on its server; run `wandb online` or unset "
            "WANDB_MODE, and upload runs kept offline with the `wandb sync` line that each has printed"
        )
    if not has_key():
        raise UserError(
            "there is no key for wandb, whose server keeps dashboards; run `wandb login`, or set WANDB_API_KEY, and "
            "try again (without an account: python -m embexp.compare compares runs in a page of your own)"
        )


def _require_project(entity: str, project: str) -> None:
    import wandb

    api = wandb.Api()
    try:
        names = [found.name for found in api.projects(entity)]
    except ValueError as error:  # an answer without projects
        raise UserError(f"the server knows no user or team {entity!r} that the key may read") from error
    if project not in names:  # saving a report would make it, a mistyped one too
        raise UserError(
            f"{entity} has no project {project!r};{nearest(project, names)} it has: {listed(names) or 'none'}. A run "
            f"makes it: python -m embexp logger.entity={entity} logger.project={project}"
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the server or the way to it has refused, as a UserError."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    server = wandb.setup().settings.base_url
    try:
        yield
    except wandb.errors.AuthenticationError as error:
        raise UserError(
            f"{server} did not take the key, or can't be reached ({first_line(error)}); try the network, and "
            "`wandb login --relogin`"
        ) from error
    except (wandb.errors.Error, WandbApiFailedError) as error:
        raise UserError(
            f"{server} has refused ({first_line(error)}); the key must be one that may write to {name}"
        ) from error
