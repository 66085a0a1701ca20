"""A small knowledge base for the tests of mining, and readers of what is written."""

import json

TOPICS = [
    *("invoices", "passwords", "holidays", "laptops", "parking", "lunch"),
    *("travel", "badges", "printers", "meetings", "software", "security"),
]


def write_handbook(folder):
    """Twelve documents of two sections each."""
    folder.mkdir()
    for topic in TOPICS:
        (folder / f"{topic}.md").write_text(
            f"# All about {topic}\n\n## How {topic} are ordered\n\n"
            f"Every order for {topic} goes through the front desk in the main building. "
            f"The desk answers within two days and keeps a list of all {topic} that were asked for. "
            f"Urgent {topic} can be had at once when a manager signs the yellow form.\n\n"
            f"## Who pays for {topic}\n\n"
            f"The firm pays for {topic} up to a limit that the finance team sets each year. "
            f"Whatever {topic} cost above that limit is split between the team and the employee. "
            f"Receipts for {topic} are kept for seven years in the archive below the garage.\n"
        )


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def record(folder):
    return json.loads((folder / "mining.json").read_text())
