import pytest

from embexp.data.splits import Shares
from embexp.datasets.docstrings import load
from embexp.errors import UserError

SOURCE = '''
"""A module's own docstring is not read, since it has no signature."""
import missing_package; raise SystemExit("nothing may be run")

def {name}_open(path: str, *, mode="r") -> int:
    """Open the {name} file
    for reading.

    It must be there.
    """
    return len("code is never read")

class {name}Shelf(dict, metaclass=abc.ABCMeta):
    """Keep {name} books in order.

    Sorted by author.
    """
    try:
        async def find(self, title):
            """Look a {name} book up.

            Raises KeyError.
            """
    finally:
        pass

    def _hidden(self):
        """Count the {name} shelves again.

        Internal.
        """

def {name}_short():
    """The {name}.

    Two words in the summary.
    """

def {name}_alone():
    """This {name} docstring has no body at all."""

def {name}_repeating():
    """Return the {name} mean value

    return The {name} mean
    value of some numbers.
    """
'''
MODULES = ["apple", "bread", "chair", "daisy"]


@pytest.fixture
def sources(tmp_path):
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(SOURCE.replace("{name}", name))
    return tmp_path


def loaded(*packages, **options):
    return load(packages=[str(package) for package in packages], split=Shares(), **options)


def passages(splits):
    return {
        splits_side.queries[query]: [splits_side.corpus[passage] for passage in splits_side.relevant(query)]
        for splits_side in (splits.train, splits.dev, splits.test)
        for query in splits_side.queries
    }


def test_the_summary_asks_and_name_signature_and_body_answer(sources):
    splits = loaded(sources)
    found = {query: texts for query, texts in passages(splits).items() if "apple" in query}
    assert found == {
        "Open the apple file for reading.": ["apple.apple_open(path: str, *, mode='r')\nIt must be there."],
        "Keep apple books in order.": ["apple.appleShelf(dict)\nSorted by author."],
        "Look a apple book up.": ["apple.appleShelf.find(self, title)\nRaises KeyError."],
    }
    assert splits.notes["summaries that their passage repeats"] == 4  # one in each module


def test_a_module_is_a_document_and_stays_on_one_side(sources):
    splits = loaded(sources)
    sides = [{query.split(".")[0] for query in side.queries} for side in (splits.train, splits.dev, splits.test)]
    assert [len(side) for side in sides] == [2, 1, 1]
    assert set.union(*sides) == set(MODULES)


def test_private_names_and_short_summaries_are_read_when_asked(sources):
    found = passages(loaded(sources, include_private=True, min_query_words=2))
    assert found["Count the apple shelves again."] == ["apple.appleShelf._hidden(self)\nInternal."]
    assert found["The apple."] == ["apple.apple_short()\nTwo words in the summary."]


def test_equal_summaries_are_one_question_that_joins_its_modules(sources):
    for name in ("first", "second"):
        (sources / f"{name}.py").write_text('def run():\n    """Start the engine now.\n\n    Once.\n    """\n')
    splits = loaded(sources)
    assert sorted(passages(splits)["Start the engine now."]) == ["first.run()\nOnce.", "second.run()\nOnce."]


def test_tests_hidden_folders_and_private_modules_are_left_out(sources):
    for place in ("tests/x.py", ".venv/x.py", "_internal/x.py", "_x.py"):
        (sources / place).parent.mkdir(exist_ok=True)
        (sources / place).write_text(SOURCE.replace("{name}", "extra"))
    assert not any("extra" in query for query in passages(loaded(sources)))
    assert "Open the extra file for reading." in passages(loaded(sources, include_private=True))


def test_files_that_are_not_python_are_counted_and_left_out(sources):
    (sources / "old.py").write_text("print 'Python 2'")
    (sources / "null.py").write_bytes(b"x = '\0'")
    assert loaded(sources).notes["files that are not valid Python"] == 2


def test_a_package_folder_gives_its_name_to_the_modules(sources):
    (sources / "__init__.py").touch()
    assert all(query.startswith(f"{sources.name}.") for query in loaded(sources).train.queries)


def test_an_installed_package_a_part_of_it_and_one_module_are_found_by_name():
    assert all(query.startswith("email.") for query in loaded("email").train.queries)
    parts = loaded("json.decoder", "json.encoder", "email.mime", "heapq")
    assert {"json.decoder", "json.encoder", "heapq"} <= {*parts.train.documents.values()}


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("no_such_package", "'no_such_package' is neither a folder, an installed package nor stdlib"),
        ("./no/such/folder", "'./no/such/folder' is neither a folder, an installed package nor stdlib"),
        ("sys", "'sys' has no Python source (it is built in or compiled)"),
        ("json.nothing", "'json.nothing' is not in the installed 'json'"),
    ],
)
def test_a_package_that_cannot_be_read_is_named(package, message):
    with pytest.raises(UserError) as error:
        loaded(package)
    assert str(error.value) == f"dataset.packages: {message}"


def test_sources_without_a_docstring_are_refused(tmp_path):
    (tmp_path / "bare.py").write_text("x = 1")
    with pytest.raises(UserError, match="has no docstring with a summary line, a blank line and a body; name other"):
        loaded(tmp_path)


def test_the_standard_library_has_over_a_thousand_pairs_and_no_passage_holds_its_question():
    splits = load(packages=["stdlib"], split=Shares(seen=0.04))
    assert len(splits.train.queries) > 1000
    assert min(len(splits.dev.queries), *map(len, splits.slices.values())) > 50
    assert set(splits.slices) == {"seen", "unseen"}
    for summary, texts in passages(splits).items():
        words = " ".join(summary.lower().split())
        assert not any(words in " ".join(text.lower().split()) for text in texts), summary
