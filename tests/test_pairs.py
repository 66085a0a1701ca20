import json

import pandas
import pytest

from embexp.data.splits import Shares
from embexp.datasets.pairs import Columns, load
from embexp.errors import UserError

GROUPED = Columns(query="q", passage="p", group="doc")
ROWS = [{"q": f"{word} question", "p": f"{word} answer", "doc": word} for word in ("ant", "bee", "cat", "dog", "eel")]


def written(folder, rows, ending):
    """The rows in a file of the given kind."""
    file = folder / f"pairs{ending}"
    if ending == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif ending == ".parquet":
        pandas.DataFrame(rows).to_parquet(file)
    else:
        pandas.DataFrame(rows).to_csv(file, index=False, sep="\t" if ending == ".tsv" else ",")
    return file


def loaded(file, columns=GROUPED, **shares):
    return load(path=str(file), columns=columns, split=Shares(**shares))


def refused(file, columns=GROUPED):
    with pytest.raises(UserError) as error:
        loaded(file, columns)
    return str(error.value)


def sides(splits):
    return splits.train, splits.dev, splits.test


def queries(splits):
    return sorted(text for side in sides(splits) for text in side.queries.values())


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_five_rows_are_read_alike_from_every_kind_of_file(tmp_path, ending):
    splits = loaded(written(tmp_path, ROWS, ending))
    assert queries(splits) == ["ant question", "bee question", "cat question", "dog question", "eel question"]
    assert sorted(splits.test.corpus.values()) == ["ant answer", "bee answer", "cat answer", "dog answer", "eel answer"]
    (query,) = splits.test.queries
    (passage,) = splits.test.relevant(query)
    assert (
        splits.test.queries[query].split()[0]
        == splits.test.corpus[passage].split()[0]
        == splits.test.document_of(query)
    )


def test_csv_ids_and_texts_stay_texts(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text('\ufeffid,q,p\n001,NA,null\n002,1.0,"two\nlines"\n1e3,nan,007\n', encoding="utf-8")
    splits = loaded(file, Columns(query="q", passage="p", query_id="id"))
    assert {key: text for side in sides(splits) for key, text in side.queries.items()} == {
        "001": "NA", "002": "1.0", "1e3": "nan",
    }  # fmt: skip
    assert sorted(splits.test.corpus.values()) == ["007", "null", "two\nlines"]


def test_rows_of_one_group_stay_on_one_side(tmp_path):
    rows = [{**row, "q": f"{row['q']} {n}", "p": f"{row['p']} {n}"} for row in ROWS for n in ("one", "two", "three")]
    splits = loaded(written(tmp_path, rows, ".jsonl"))
    assert [len(side.queries) for side in sides(splits)] == [9, 3, 3]
    assert all(
        len({text.split()[0] for text in side.queries.values()}) * 3 == len(side.queries) for side in sides(splits)
    )


def test_a_passage_that_stands_in_two_groups_joins_them(tmp_path):
    shared = [{"q": "shared by two", "p": "eel answer", "doc": "dog"}]
    for seed in range(6):
        splits = loaded(written(tmp_path, ROWS + shared, ".jsonl"), seed=seed)
        joined = {"dog question", "eel question", "shared by two"}
        assert sorted(len(joined & set(side.queries.values())) for side in sides(splits)) == [0, 0, 3]


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), (" Train", "DEV", "TEST "), ("train", "val", "test")]
)
def test_the_split_column_decides_and_documents_of_train_make_the_slices(tmp_path, names):
    train, dev, test = names
    side = {"ant": train, "bee": train, "cat": dev, "dog": test, "eel": test}
    rows = [{**row, "doc": "ant" if row["doc"] == "dog" else row["doc"], "split": side[row["doc"]]} for row in ROWS]
    splits = loaded(written(tmp_path, rows, ".csv"), Columns("q", "p", "doc", "split"))
    assert [sorted(side.queries.values()) for side in sides(splits)] == [
        ["ant question", "bee question"], ["cat question"], ["dog question", "eel question"],
    ]  # fmt: skip
    texts = {name: [splits.test.queries[query] for query in ids] for name, ids in splits.slices.items()}
    assert texts == {"seen": ["dog question"], "unseen": ["eel question"]}


def test_without_dev_it_is_taken_from_train(tmp_path):
    rows = [{**row, "split": "test" if row["doc"] == "eel" else "train"} for row in ROWS]
    rows.append({"q": "never answered", "p": "dog answer", "doc": "dog", "split": "train"})
    rows = [{**row, "label": int(row["q"] != "never answered")} for row in rows]
    splits = loaded(written(tmp_path, rows, ".jsonl"), Columns("q", "p", "doc", "split", "label"))
    assert [len(side.queries) for side in sides(splits)] == [3, 1, 1]


def test_label_zero_is_a_judgement_and_a_query_with_nothing_else_is_left_out(tmp_path):
    rows = [{**row, "label": 2} for row in ROWS] + [
        {"q": "ant question", "p": "bee answer", "doc": "bee", "label": 0},
        {"q": "never answered", "p": "bee answer", "doc": "bee", "label": "0"},
    ]
    splits = loaded(written(tmp_path, rows, ".jsonl"), Columns("q", "p", "doc", label="label"))
    assert len(queries(splits)) == 5
    (grades,) = (grades for side in sides(splits) for grades in side.qrels.values() if len(grades) == 2)
    assert sorted(grades.values()) == [0, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": "a", "p": "b"}\n\n{"q": a}\n', "a.jsonl, line 3 is not JSON (Expecting value): '{"),
        ("a.jsonl", '["q", "p"]\n', "a.jsonl, line 1 is not a JSON object"),
        ("a.jsonl", "", "a.jsonl is empty: it has no rows"),
        ("a.csv", "q,p\n", "a.csv is empty"),
        ("a.csv", "question,p,title\nx,y,z\n", "a.csv, line 2: no column q; it has question, p, title. Name yours"),
        ("a.csv", "q,p\nx,y\nx,y,z\n", "a.csv, line 3 does not have 2 values"),
        ("a.csv", "q,p\nx\n", "a.csv, line 2 does not have 2 values"),
        ("a.csv", 'q,p\nx,"y\nz,w\n', "a.csv, line 3 can't be read (unexpected end of data); close every quote"),
        ("a.csv", b"q,p\nx,caf\xe9\n", "a.csv, line 2 is not UTF-8 text; save the file as UTF-8"),
        ("a.tsv", "q\tp\nx\t \n", "a.tsv, line 2: column p is ' '; it must be a text that is not empty"),
        ("a.jsonl", '{"q": 7, "p": "b"}\n', "a.jsonl, line 1: column q is 7; it must be a text that is not empty"),
        ("a.jsonl", '{"q": null, "p": "b"}\n', "line 1: column q is None"),
        ("a.parquet", "PAR?", "a.parquet is not a Parquet file"),
        ("a.xlsx", "", "must end in .jsonl, .csv, .tsv, .parquet"),
        ("pairs", "", "must end in .jsonl"),
        ("a.csv", "q,p\nx,y\nz,y\n", "too little to split: 2 queries on 1 independent documents"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(tmp_path / name, Columns(query="q", passage="p"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", "0.5", "line 3: column label is '0.5'; a label is 0 (does not answer) or a grade from 1 up"),
        ("label", "-1", "line 3: column label is '-1'"),
        ("label", "yes", "line 3: column label is 'yes'"),
        ("split", "holdout", "line 3: column split is 'holdout'; it must be train, dev or test"),
        ("split", "train", "column split of"),
        ("query_id", "1", "line 3: query id '1' stands for two texts: 'ant question' and 'bee question'"),
        ("passage_id", "1", "line 3: passage id '1' stands for two texts: 'ant answer' and 'bee answer'"),
    ],
)
def test_a_faulty_value_is_refused_with_its_line(tmp_path, column, values, message):
    rows = [{**row, column: "train" if column == "split" else "1"} for row in ROWS]
    rows[1][column] = values
    assert message in refused(written(tmp_path, rows, ".csv"), Columns("q", "p", "doc", **{column: column}))


def test_a_passage_id_in_two_groups_is_refused(tmp_path):
    rows = [{"q": "x", "p": "y", "doc": doc, "id": "p1"} for doc in ("one", "two")]
    message = refused(written(tmp_path, rows, ".csv"), Columns("q", "p", "doc", passage_id="id"))
    assert message.endswith("line 3: passage id 'p1' stands in two groups: 'one' and 'two'")


def test_a_file_that_is_not_there_is_refused_with_the_kinds_to_name(tmp_path):
    assert refused(tmp_path / "no.csv").endswith("no.csv is not a file; name a .jsonl, .csv, .tsv or .parquet file")


def test_a_column_that_may_change_the_meaning_is_read_or_left_out_on_purpose(tmp_path):
    rows = [{"query": f"question {i}", "passage": f"passage {i}", "split": "train"} for i in range(30)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"the column split is not read.*dataset.columns.split=split"):
        load(path=str(file), columns=Columns(), split=Shares())
    shares = Shares(near_duplicate=1.0)
    assert len(load(path=str(file), columns=Columns(unread=["split"]), split=shares).test.queries) == 6
