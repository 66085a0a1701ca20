"""Mining with an LLM from end to end, as the command line runs it: against a server over real HTTP."""

import json
import re
import shlex
from dataclasses import replace

import pytest

from tests.command import QUICK
from tests.handbook import record, rows
from tests.mine_server import Reply, Stub, error, items
from tests.tiny import tiny_transformer


def answer(call):
    """Questions with words of their own for each passage; every judgement is yes; a paraphrase is turned round."""
    asked = call.body["response_format"]["json_schema"]["name"].partition("_")[0]
    if asked == "verdict":
        return Reply('{"answered": true}')
    if asked == "paraphrase":
        query = re.search(r"<query>\s*(.*?)\s*</query>", call.body["messages"][-1]["content"])[1]
        return Reply(json.dumps({"question": f"tell me please: {' '.join(reversed(query.replace(':', '').split()))}"}))
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
    return ["documents=handbook", f"llm.base_url={server.base_url}", "llm.api_key_env=STUB_KEY"]


def test_an_llm_is_asked_once_for_each_passage_and_never_again(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm))
    assert mined.code == 0, mined.output
    said = record(mined.folder)
    asked = [call.about for call in llm.calls if "<passage>" in call.body["messages"][-1]["content"]]
    assert said["passages"] == len(asked) == len(set(asked)) == 24
    assert said["calls"]["answered"] == len(llm.calls) == 24 + said["questions"].get("paraphrase", 0)
    assert said["usd"] == pytest.approx((said["tokens"]["prompt"] * 2.5 + said["tokens"]["completion"] * 10) / 1e6)
    again = embexp.mine(*asking(llm))
    assert record(again.folder)["content"] == said["content"]
    assert len(llm.calls) == said["calls"]["answered"]


def test_the_order_in_which_answers_come_changes_nothing(embexp, handbook, llm, tmp_path):
    first = embexp.mine(*asking(llm), "llm.concurrency=1")
    order = [row["_id"] for row in rows(first.folder / "queries.jsonl")]
    llm.plan = lambda call: replace(answer(call), latency=(37 * call.number % 10) / 100)
    second = embexp.mine(*asking(llm), "out=again", "paraphrases=0.05")
    assert second.code == 0
    assert [row["_id"] for row in rows(tmp_path / "again" / "queries.jsonl")] == order


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
    assert record(mined.folder)["stopped"] is not None
    hint = mined.output.split("To go on: python -m embexp.mine ")[1].splitlines()[0]
    assert shlex.split(hint)[-1] == "budget.calls=20"
    assert "budget.calls=10" not in hint
    further = embexp.mine(*shlex.split(hint))
    assert (further.code, len(llm.calls)) == (1, 20)
    whole = embexp.mine(*asking(llm), "paraphrases=0", "budget.calls=100")
    assert (whole.code, len(llm.calls), record(whole.folder)["stopped"]) == (0, 24, None)


def test_a_budget_that_ends_early_leaves_no_side_without_questions(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm), "paraphrases=0", "budget.calls=8")
    sides = {row["metadata"]["side"] for row in rows(mined.folder / "queries.jsonl")}
    assert {"train", "dev", "unseen"} <= sides
    assert "python -m embexp dataset=mined dataset.path=" in mined.output
    assert embexp("dataset=mined", "dataset.path=mined", *QUICK).code == 0


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
    trained = embexp("dataset=mined", "dataset.path=mined", *QUICK, "limit=null")
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


def test_a_judge_finds_the_passages_of_real_questions_without_a_miner_that_asks(embexp, handbook, llm, tmp_path):
    (tmp_path / "real.jsonl").write_text(json.dumps({"query": "receipts for zebras in the archive"}) + "\n")
    mined = embexp.mine(*asking(llm), "miner=sentences", "judge=true", "real_questions=real.jsonl")
    assert mined.code == 0, mined.output
    assert record(mined.folder)["questions"]["real"] == 1


def test_the_model_of_the_round_trip_is_had_before_anything_is_paid(embexp, handbook, llm):
    mined = embexp.mine(*asking(llm), "filter.round_trip.model=/nowhere")
    assert (mined.code, llm.calls) == (1, [])
    assert "filter.round_trip.model=/nowhere is not a folder" in mined.output


def test_the_model_that_is_tuned_is_no_judge_of_the_round_trip(embexp, handbook, llm, tmp_path):
    tiny_transformer(tmp_path / "tiny")
    own = ["model=local", "model.path=tiny", f"filter.round_trip.model={tmp_path / 'tiny'}"]
    mined = embexp.mine(*asking(llm), *own)
    assert (mined.code, llm.calls) == (1, [])
    assert "is the model that is to be tuned" in mined.output


def test_a_dry_run_says_what_it_could_not_count(embexp, handbook, llm, tmp_path):
    (tmp_path / "real.jsonl").write_text(json.dumps({"query": "receipts for zebras"}) + "\n")
    output = embexp.mine(*asking(llm), "dry_run=true", "judge=true", "real_questions=real.jsonl").output
    assert "depends on the answers: judge=true, paraphrases, the passages of real_questions without ids." in output


def test_completion_adds_passages_that_the_judge_takes(embexp, handbook, llm):
    folder = embexp.mine(*asking(llm), "paraphrases=0", "complete=2").folder
    lines = (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]
    questions = {line.split("\t")[0] for line in lines}
    assert len(lines) > 1.5 * len(questions)


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


def test_completion_takes_no_answer_from_another_side_so_that_the_set_trains(embexp, handbook, llm):
    folder = embexp.mine(*asking(llm), "paraphrases=0", "complete=5").folder
    side_of = {row["metadata"]["passage"]: row["metadata"]["side"] for row in rows(folder / "queries.jsonl")}
    trained = {line.split("\t")[1] for line in (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]}
    assert {side_of.get(passage) for passage in trained} <= {"train", "seen"}
    assert embexp("dataset=mined", "dataset.path=mined", *QUICK).code == 0


def test_a_whole_data_set_is_not_replaced_by_a_part(embexp, handbook, llm):
    whole = record(embexp.mine(*asking(llm), "paraphrases=0").folder)["content"]
    mined = embexp.mine(*asking(llm), "paraphrases=0", "llm.model=gpt-4.1", "budget.calls=30")
    assert (mined.code, "Nothing was written" in mined.output) == (1, True)
    assert record(mined.folder)["content"] == whole


def test_a_paraphrase_in_the_same_words_is_none(embexp, handbook, llm):
    def echo(call):
        query = re.search(r"<query>\s*(.*?)\s*</query>", call.body["messages"][-1]["content"])
        return Reply(json.dumps({"question": query[1]})) if query else answer(call)

    llm.plan = echo
    said = record(embexp.mine(*asking(llm), "paraphrases=1").folder)
    assert "paraphrase" not in said["questions"]
    assert said["problems"]["paraphrase: the same words again"] > 10


@pytest.mark.parametrize(
    "secret", ["llm.base_url='https://me:sk-canary-1@host/v1'", "llm.api_key_env=sk-canary-1234567890"]
)
def test_a_key_in_the_config_is_refused_before_it_is_written_down(embexp, handbook, tmp_path, secret):
    mined = embexp.mine("documents=handbook", secret)
    assert (mined.code, "canary" in mined.output) == (1, False)
    assert not any(b"canary" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
