"""Mining from end to end, as the command line runs it."""

import json
import re

import pytest

from tests.command import QUICK
from tests.mine_server import Reply, Stub, error, items

TOPICS = [
    *("invoices", "passwords", "holidays", "laptops", "parking", "lunch"),
    *("travel", "badges", "printers", "meetings", "software", "security"),
]


@pytest.fixture
def handbook(tmp_path):
    """Twelve documents of two sections each."""
    folder = tmp_path / "handbook"
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
    return folder


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def record(folder):
    return json.loads((folder / "mining.json").read_text())


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
        text = f"Wild {name} are not allowed in the building after dark at all."
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
    ],
)
def test_mistakes_are_named_before_anything_is_read(embexp, handbook, arguments, words):
    mined = embexp.mine(*arguments)
    assert mined.code == 1
    assert all(word in mined.output for word in words), mined.output


def test_out_must_be_set(embexp, handbook):
    mined = embexp.mine(*OFFLINE, "out=???")
    assert (mined.code, "out must be set: out=..." in mined.output) == (1, True)


def test_a_second_process_in_the_folder_is_refused(embexp, handbook, tmp_path):
    from filelock import FileLock

    (tmp_path / "mined").mkdir()
    with FileLock(tmp_path / "mined" / ".mining.lock"):
        mined = embexp.mine(*OFFLINE)
    assert (mined.code, "another process is mining into" in mined.output) == (1, True)


# --- with an LLM: a server over real HTTP -----------------------------------------------------------------------------


def answer(call):
    """Questions with words of their own for each passage; every judgement is yes; a paraphrase turns the words round."""
    asked = call.body["response_format"]["json_schema"]["name"].partition("_")[0]
    if asked == "verdict":
        return Reply('{"answered": true}')
    if asked == "paraphrase":
        query = re.search(r"<query>\s*(.*?)\s*</query>", call.body["messages"][-1]["content"])[1]
        return Reply(json.dumps({"question": f"tell me please: {' '.join(reversed(query.split()))}"}))
    topic = re.search(r"\b(\w+) (?:goes through|up to a limit)", call.about)[1]
    ask = (
        ("desk orders answered", "urgent yellow form") if "front desk" in call.about else ("finance limit", "receipts")
    )
    span = " ".join(call.about.split()[:4])
    found = [(kind, f"{topic}: {ask[place % 2]} {kind[0] * 3}{place}", span) for place, kind in
             enumerate(("question", "keywords", "problem"))]  # fmt: skip
    return Reply(items(*found), usage={"prompt_tokens": 100, "completion_tokens": 10})


@pytest.fixture
def llm(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "sk-canary-1234567890")
    with Stub(answer) as server:
        yield server


def asking(server):
    return ["documents=handbook", f"llm.base_url={server.url}", "llm.api_key_env=STUB_KEY"]


def test_an_llm_is_asked_once_for_each_passage_and_never_again(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm))
    assert mined.code == 0, mined.output
    said = record(mined.folder)
    about = [call.about for call in llm.calls if "response_format" in call.body]
    assert said["passages"] == 24
    assert said["calls"]["answered"] == len(llm.calls) == len(set(about)) + said["questions"].get("paraphrase", 0)
    assert said["usd"] == pytest.approx((said["tokens"]["prompt"] * 2.5 + said["tokens"]["completion"] * 10) / 1e6)
    again = embexp.mine(*asking(llm))
    assert record(again.folder)["content"] == said["content"]
    assert len(llm.calls) == said["calls"]["answered"]


def test_documents_added_later_are_the_only_ones_that_are_paid_for(embexp, handbook, llm):
    embexp.mine(*asking(llm), "paraphrases=0")
    before = len(llm.calls)
    (handbook / "zebras.md").write_text("# Zebras\n\nEvery order for zebras goes through the front desk of the zoo.\n")
    embexp.mine(*asking(llm), "paraphrases=0")
    assert len(llm.calls) == before + 1
    assert "zebras" in llm.calls[-1].about


def test_a_budget_ends_mining_cleanly_and_a_larger_one_goes_on(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm), "paraphrases=0", "budget.calls=10")
    assert (mined.code, len(llm.calls)) == (1, 10)
    assert "budget.calls=10" in mined.output
    assert "To go on: python -m embexp.mine" in mined.output
    assert record(mined.folder)["stopped"] is not None
    whole = embexp.mine(*asking(llm), "paraphrases=0", "budget.calls=100")
    assert (whole.code, len(llm.calls), record(whole.folder)["stopped"]) == (0, 24, None)


def test_a_dry_run_makes_no_call_and_says_what_the_questions_would_cost(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm), "dry_run=true")
    assert (mined.code, llm.calls) == (0, [])
    assert "24 calls" in mined.output
    assert "USD" in mined.output


def test_paraphrases_are_a_slice_of_their_own_with_their_questions_passages(embexp, handbook, llm):
    folder = embexp.mine(*asking(llm), "paraphrases=1").folder
    found = {row["_id"]: row for row in rows(folder / "queries.jsonl")}
    slices = json.loads((folder / "slices.json").read_text())
    answers = [line.split("\t") for name in ("train", "test") for line in
               (folder / "qrels" / f"{name}.tsv").read_text().splitlines()[1:]]  # fmt: skip
    answered = {query: passage for query, passage, _ in answers}
    assert len(slices["paraphrase"]) > 10
    for key in slices["paraphrase"]:
        assert answered[key] == answered[found[key]["metadata"]["paraphrase_of"]]
    trained = embexp("dataset=mined", "dataset.path=mined", *QUICK)
    assert trained.code == 0, trained.output
    assert trained.result["delta"]["recall@10"]["queries"] == (
        trained.result["counts"]["queries"]["test"] - len(slices["paraphrase"])
    )


def test_real_questions_without_ids_get_their_passages_from_the_judge(embexp, handbook, llm, tmp_path):
    (tmp_path / "real.jsonl").write_text(json.dumps({"query": "receipts for zebras in the archive"}) + "\n")
    folder = embexp.mine(*asking(llm), "paraphrases=0", "real_questions=real.jsonl").folder
    (key,) = json.loads((folder / "slices.json").read_text())["real"]
    lines = [line for line in (folder / "qrels" / "test.tsv").read_text().splitlines() if line.startswith(key)]
    assert len(lines) == 10  # the judge says yes to each of the ten that keyword search found


def test_completion_adds_passages_that_the_judge_takes(embexp, handbook, llm):
    folder = embexp.mine(*asking(llm), "paraphrases=0", "complete=2").folder
    lines = (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]
    questions = {line.split("\t")[0] for line in lines}
    assert len(lines) > 2 * len(questions)


def test_the_key_is_in_nothing_that_is_written_or_printed(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm), "debug=true")
    assert "canary" not in mined.output
    assert all(b"canary" not in file.read_bytes() for file in mined.folder.rglob("*") if file.is_file())
    assert llm.calls[0].headers["authorization"] == "Bearer sk-canary-1234567890"


def test_a_wrong_key_ends_mining_at_once_and_writes_no_data_set(embexp, handbook, llm):
    llm.plan = lambda call: error(401, "Incorrect API key provided: sk-canary-1234567890", code="invalid_api_key")
    mined = embexp.mine(*asking(llm), "llm.concurrency=1")
    assert (mined.code, len(llm.calls)) == (1, 1)
    assert "canary" not in mined.output
    assert not (mined.folder / "corpus.jsonl").exists()


def test_a_missing_key_is_said_with_what_to_set(embexp, handbook, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mined = embexp.mine("documents=handbook")
    assert (mined.code, "OPENAI_API_KEY is not set" in mined.output) == (1, True)
