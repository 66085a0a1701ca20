"""Mining from end to end, as the command line runs it."""

import json

import pytest

from tests.command import QUICK
from tests.handbook import record, rows
from tests.test_pubmedqa import folder as pubmedqa

OFFLINE = ["documents=handbook", "miner=sentences"]


def test_documents_become_a_data_set_that_trains(embexp, handbook):
    mined = embexp.mine(*OFFLINE)
    assert mined.code == 0, mined.output
    assert "python -m embexp dataset=mined dataset.path=" in mined.output
    assert {"train", "dev", "unseen"} <= record(mined.folder)["questions"].keys()
    trained = embexp("dataset=mined", "dataset.path=mined", *QUICK)
    assert trained.code == 0, trained.output
    assert trained.result["counts"]["queries"]["train"] > 10
    assert "unseen" in trained.result["slices"]


def test_the_same_command_again_writes_the_same_data_set(embexp, handbook):
    first = record(embexp.mine(*OFFLINE).folder)["content"]
    again = embexp.mine(*OFFLINE)
    assert (again.code, record(again.folder)["content"]) == (0, first)


def test_documents_added_later_change_no_question_of_the_others(embexp, handbook):
    before = {row["_id"]: row["metadata"]["side"] for row in rows(embexp.mine(*OFFLINE).folder / "queries.jsonl")}
    for name in ("zebras", "yachts"):
        text = (
            f"Wild {name} are not allowed in the building after dark, whatever their keeper says about their habits. "
            f"The keeper of the {name} pays for the damage that they do to carpets, chairs and plants on any floor. "
            f"Whoever meets one of the {name} calls the front desk and waits behind a closed door until it is gone."
        )
        (handbook / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    after = {row["_id"]: row["metadata"]["side"] for row in rows(embexp.mine(*OFFLINE).folder / "queries.jsonl")}
    assert {key: after.get(key) for key in before} == before
    assert len(after) > len(before)


def test_every_query_is_about_a_passage_of_the_corpus_and_no_document_is_on_two_sides(embexp, handbook):
    folder = embexp.mine(*OFFLINE).folder
    document_of = {row["_id"]: row["document"] for row in rows(folder / "corpus.jsonl")}
    sides = {}
    for row in rows(folder / "queries.jsonl"):
        side = row["metadata"]["side"]
        sides.setdefault(document_of[row["metadata"]["passage"]], set()).add("train" if side == "seen" else side)
    assert len(sides) >= 10
    assert all(len(found) == 1 for found in sides.values())


def test_a_pseudo_query_is_not_in_the_passage_that_it_trains_on(embexp, handbook):
    folder = embexp.mine(*OFFLINE).folder
    whole = {row["_id"]: row["text"] for row in rows(folder / "corpus.jsonl")}
    cloze = {row["_id"]: row["text"] for row in rows(folder / "cloze.jsonl")}
    cut = [row["metadata"] for row in rows(folder / "queries.jsonl")
           if row["metadata"]["cloze"] and row["metadata"]["kind"] == "sentence"]  # fmt: skip
    assert len(cut) > 5
    for about in cut:
        assert about["span"] in whole[about["passage"]]
        assert about["span"] not in cloze[about["passage"]]


def test_real_questions_are_the_test_of_pseudo_queries(embexp, handbook, tmp_path):
    ids = [row["_id"] for row in rows(embexp.mine(*OFFLINE).folder / "corpus.jsonl")]
    (tmp_path / "real.jsonl").write_text(json.dumps({"query": "how do I get a badge?", "passages": ids[:1]}) + "\n")
    folder = embexp.mine(*OFFLINE, "real_questions=real.jsonl", "split.test=0").folder
    assert json.loads((folder / "slices.json").read_text()).keys() == {"real"}
    assert record(folder)["questions"]["real"] == 1


def test_files_that_can_not_be_read_are_named_at_the_end_and_stop_nothing(embexp, handbook):
    (handbook / "torn.pdf").write_bytes(b"%PDF-1.7 torn")
    mined = embexp.mine(*OFFLINE)
    assert mined.code == 0
    assert "torn.pdf" in mined.output.split("questions:")[-1]
    assert list(record(mined.folder)["unreadable"]) == ["torn.pdf"]


def test_without_an_llm_a_dry_run_costs_nothing_and_writes_nothing(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "dry_run=true")
    assert (mined.code, "costs nothing" in mined.output) == (0, True)
    assert not (mined.folder / "corpus.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["documents=nowhere", "miner=sentences"], ["nowhere"]),
        (["miner=sentences"], ["set documents= to a folder"]),
        (["documents=handbook", "dataset=pubmedqa", "miner=sentences"], ["set documents= to a folder"]),
        ([*OFFLINE, "questions.train=-1", "questions.kinds=[riddle]"], ["questions.train=-1", "must be a list of"]),
        ([*OFFLINE, "budget.usd=0", "complete=-2", "paraphrases=3"], ["budget.usd=0", "complete=-2", "paraphrases=3"]),
        ([*OFFLINE, "split.test=0"], ["nothing to test on"]),
        ([*OFFLINE, "chunker.token=5"], ["did you mean chunker.tokens?"]),
        ([*OFFLINE, "miner.client=x"], ["miner.client is set by embexp"]),
        (["documents=handbook", "miner=sentence"], ["did you mean sentences?"]),
        ([*OFFLINE, "real_questions=dataset"], ["needs a data set"]),
        ([*OFFLINE, "-m"], ["mining takes no -m"]),
        ([*OFFLINE, "loss=mnrl"], ["loss: this command has no such group"]),
    ],
)
def test_mistakes_are_named_before_anything_is_read(embexp, handbook, arguments, words):
    mined = embexp.mine(*arguments)
    assert mined.code == 1
    assert all(word in mined.output for word in words), mined.output


@pytest.mark.parametrize("command", ["embexp", "embexp.mine"])
def test_resume_of_a_mined_folder_says_how_mining_goes_on_and_how_to_train(embexp, handbook, tmp_path, command):
    assert embexp.mine(*OFFLINE, "questions.train=2").code == 0
    ended = (embexp if command == "embexp" else embexp.mine)(f"resume={tmp_path / 'mined'}")
    assert ended.code == 1
    again = ended.output.split("python -m embexp.mine ")[1].split(". To train")[0]
    assert {*OFFLINE, "questions.train=2", "out=mined"} <= set(again.split())
    assert f"dataset=mined dataset.path={tmp_path / 'mined'}" in ended.output
    assert "mistakes" not in ended.output


def test_what_is_not_there_is_listed_with_the_other_mistakes_before_documents_are_read(embexp, handbook, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mined = embexp.mine(
        *("documents=[handbook,nowhere]", "real_questions=none.jsonl", "llm.model=unheard-of", "budget.usd=1"),
        *("prompts.judge.user=yes?", "miner.prompt.user='{pasage}'", "questions.train=-1"),
    )
    assert (mined.code, mined.folder) == (1, None)
    said = [
        *("documents=nowhere names no file or folder", "real_questions=none.jsonl is not a file"),
        *("OPENAI_API_KEY is not set", "the price of unheard-of is not in the price table", "questions.train=-1"),
        *("prompts.judge: a prompt lacks the placeholder {passage}", "miner.prompt: a prompt has the placeholder"),
    ]
    assert [words for words in said if words not in mined.output] == []


def test_the_config_is_shown_and_a_dry_run_made_without_a_key(embexp, handbook, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert embexp.mine("documents=handbook", "--cfg", "job").code == 0
    assert embexp.mine("documents=handbook", "dry_run=true").code == 0
    assert "OPENAI_API_KEY is not set" in embexp.mine(*OFFLINE, "judge=true").output


def test_a_wrong_value_of_the_sentence_miner_is_named_with_the_others(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "miner.words=[9,3]", "miner.reach=-1", "limit=0")
    assert all(words in mined.output for words in ("miner.reach=-1", "limit=0"))


def test_out_must_be_set(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "out=???")
    assert (mined.code, "out must be set: out=..." in mined.output) == (1, True)


def test_a_second_process_in_the_folder_is_refused(embexp, handbook, tmp_path):
    from filelock import FileLock

    (tmp_path / "mined").mkdir()
    with FileLock(tmp_path / "mined" / ".mining.lock"):
        mined = embexp.mine(*OFFLINE)
    assert (mined.code, "another process is mining into" in mined.output) == (1, True)


def test_a_data_sets_passages_are_mined_and_its_own_questions_are_the_test(embexp, tmp_path):
    (tmp_path / "PubMedQA").mkdir()
    pubmedqa(tmp_path / "PubMedQA")
    mined = embexp.mine("preset=pubmedqa_offline", "dataset.path=PubMedQA")
    assert mined.code == 0, mined.output
    said = record(mined.folder)
    assert (said["documents"], said["passages"], said["questions"]["real"]) == (10, 20, 10)
    assert json.loads((mined.folder / "slices.json").read_text()).keys() == {"real"}
    assert {row["_id"] for row in rows(mined.folder / "corpus.jsonl")} >= {"100-0", "100-1", "109-1"}


def test_a_set_for_evaluation_alone_is_scored_by_the_command_that_mining_prints(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "split.test=1")
    hint = mined.output.split("next:    python -m embexp ")[1].splitlines()[0]
    assert hint.endswith("trainer=none")
    scored = embexp(*hint.split(), "model=static", "logger=none")
    assert scored.code == 0, scored.output
    assert scored.result["base"]["dev"] is None
    assert "recall@10 by slice" in scored.output
    assert "unseen (" in scored.output
    assert scored.result["counts"]["queries"]["test"] == record(mined.folder)["questions"]["unseen"] > 10
    assert f"({record(mined.folder)['questions']['unseen']} queries)" in scored.output
    trained = embexp("dataset=mined", "dataset.path=mined", *QUICK)
    assert (trained.code, "trainer=none, and no reranker=trained, to score" in trained.output) == (1, True)


def test_a_set_for_evaluation_alone_is_scored_by_many_models_in_one_table(embexp, handbook, tmp_path):
    embexp.mine(*OFFLINE, "split.test=1")
    arguments = ["dataset=mined", "dataset.path=mined", "trainer=none", "model=static", "logger=none"]
    many = embexp("-m", *arguments, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'many'}")
    assert many.code == 0, many.output
    lines = [line for line in (tmp_path / "many" / "summary.md").read_text().splitlines() if "base only" in line]
    assert len(lines) == 2


def test_a_limit_takes_so_many_documents_and_stays_the_same_ones(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "limit=5")
    first = {row["document"] for row in rows(mined.folder / "corpus.jsonl")}
    more = {row["document"] for row in rows(embexp.mine(*OFFLINE, "limit=8").folder / "corpus.jsonl")}
    assert (len(first), len(more), first < more) == (5, 8, True)


def test_a_data_set_among_its_documents_is_not_read_again(embexp, handbook):
    arguments = ["documents=handbook", "miner=sentences", "out=handbook/mined"]
    assert embexp.mine(*arguments).code == 0
    first = record(handbook / "mined")["content"]
    assert embexp.mine(*arguments).code == 0
    assert record(handbook / "mined")["content"] == first
