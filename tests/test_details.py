"""The end of report.md: numbers as a person reads them."""

from __future__ import annotations

from embexp.reporting import details as parts
from embexp.reporting.tables import markdown

COUNTS = {
    "queries": {"train": 1356, "dev": 20, "test": 1},
    "relevant": {"train": 1400, "dev": 20, "test": 1},
    "passages": {"train": 2048, "dev": 2048, "test": 2048},
    "slices": {"seen": 4, "unseen": 16},
    "left_out": {"files that are not valid Python": 0, "queries dropped as near copies of test or dev": 2},
    "truncated": 1234,
    "paraphrases_dropped": 0,
    "train_rows": 1400,
    "negatives": None,
    "masked_conflicts": 0,
    "steps": 1,
    "best_step": 1,
}
RESULT = {"counts": COUNTS, "seconds": {"model": 0.0, "training": 1.51}, "versions": {"torch": "2.13"}}


def details(result):
    return markdown(block for name, blocks in parts.details(result).items() for block in (f"## {name}", *blocks))


def test_the_details_are_a_table_of_the_data_and_sentences_on_the_training():
    assert (
        details(RESULT)
        == """## Data

| split | queries | relevant passages | passages searched |
|-------|--------:|------------------:|------------------:|
| train |   1,356 |             1,400 |             2,048 |
| dev   |      20 |                20 |             2,048 |
| test  |       1 |                 1 |             2,048 |

Of test's queries 4 are seen and 16 are unseen.

Left out or cut:

- queries dropped as near copies of test or dev: 2
- passages of which the model reads the beginning only: 1,234

## Training

1,400 rows, 1 step; step 1 was best on dev.

## Times

- model: 0.0 s
- training: 1.5 s

## Versions

- torch: 2.13"""
    )


def test_what_a_run_has_not_come_to_is_left_out():
    nothing_yet = dict.fromkeys(("truncated", "paraphrases_dropped", "steps"))
    text = details({**RESULT, "counts": {**COUNTS, **nothing_yet, "slices": {"unseen": 1}, "left_out": {}}})
    assert "Training" not in text
    assert "Left out" not in text
    assert "Of test's queries" not in text
    assert details({"counts": {}, "seconds": {}, "versions": {}}) == ""


def test_rows_beside_a_conflict_and_a_dev_that_was_not_looked_at_are_said():
    text = details({**RESULT, "counts": {**COUNTS, "masked_conflicts": 3, "best_step": None, "steps": 2000}})
    assert "1,400 rows, 2,000 steps; dev was not looked at, so these are the last weights." in text
    assert "3 rows met a conflicting row, masked in the loss." in text
