"""An embeddings endpoint as a base: what is sent, what is kept, what is trained behind it, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from embexp import cache, stamp
from embexp.config.experiment import CONFIG_FOLDER, mistakes_in
from embexp.drift.drifting import drift
from embexp.encoding.encoder import Encoder
from embexp.encoding.tokens import count_truncated, lengths
from embexp.errors import UserError
from embexp.export.exported import export
from embexp.models import remote
from embexp.models.adapters import adapter_of, head_of
from embexp.models.embedding_model import Transformer
from embexp.models.endpoint import OpenAIEmbeddings
from embexp.reporting.usage import OF_LAYERS
from embexp.results.finished import opened
from embexp.search.cli import main
from embexp.service.budget import Budget
from embexp.training.tuning import save
from tests.conftest import toy_set
from tests.mine_server import Reply, Stub, error
from tests.test_adapters import KINDS, PASSAGES, QUERIES, rows, trained
from tests.test_config import composed
from tests.tiny import tiny_transformer

SIZE = 16
KEY = "sk-canary-8d1f6a"


def vector(text):
    """A unit vector for each word, added up."""
    found = np.zeros(SIZE)
    for word in text.lower().split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        found += np.random.default_rng(seed).standard_normal(SIZE)
    return [float(number) for number in found]


def answer(texts, **usage):
    """In reverse order: only the index says which is which."""
    data = [{"object": "embedding", "index": place, "embedding": vector(text)} for place, text in enumerate(texts)]
    body = {"object": "list", "data": data[::-1], "usage": usage or {"prompt_tokens": 3 * len(texts)}}
    return Reply(body=body)


def good(call):
    return answer(call.body["input"])


def model_of(stub, **options):
    settings = {"model": "m", "base_url": stub.base_url, "api_key_env": None, "dimensions": SIZE, "retries": 0}
    return OpenAIEmbeddings(**{**settings, "batch_size": 4, "concurrency": 2, **options}).load([])


@pytest.fixture(autouse=True)
def kept(tmp_path):
    """A cache of the test's own: what one stub has answered is not asked of the next."""
    with cache.kept_in(tmp_path / "cache"):
        yield tmp_path / "cache"


def unit(texts):
    found = np.array([vector(text) for text in texts])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def sent(stub):
    return [text for call in stub.calls for text in call.body["input"]]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_each_text_is_sent_once_with_its_prompt_and_has_its_own_vector():
    with Stub(good) as stub:
        model = model_of(stub, prompts={"query": "q: ", "passage": ""})
        assert Encoder(model).passages([*PASSAGES, PASSAGES[0]]) == pytest.approx(
            unit([*PASSAGES, PASSAGES[0]]), abs=1e-6
        )
        assert Encoder(model).queries(["one"]) == pytest.approx(unit(["q: one"]), abs=1e-6)
        assert model_of(stub).remote.embedded(PASSAGES[:2], None) == pytest.approx(unit(PASSAGES[:2]), abs=1e-6)
    assert sorted(sent(stub)) == sorted([*PASSAGES, "q: one"])
    assert [call.path for call in stub.calls] == ["/v1/embeddings"] * 4  # 4, 4, 2 and 1
    assert stub.calls[0].body == {"model": "m", "input": stub.calls[0].body["input"]}
    assert model.remote.sent == {"texts": 11, "calls": 4, "tokens": 33}


def test_another_model_or_length_at_the_same_endpoint_is_asked_anew():
    with Stub(good) as stub:
        for options in ({}, {"model": "n"}, {"shorten": True}, {}):
            Encoder(model_of(stub, **options)).passages(["one"])
    assert [call.body["model"] for call in stub.calls] == ["m", "n", "m"]
    assert stub.calls[2].body["dimensions"] == SIZE


def test_vectors_whose_file_was_removed_are_asked_for_again(kept):
    with Stub(good) as stub:
        for _ in range(2):
            model = model_of(stub)
            Encoder(model, content=model.origin["content"]).passages(["one"])
        (file,) = (kept / "endpoints").glob("*.sqlite")
        file.unlink()
        model = model_of(stub)
        Encoder(model, content=model.origin["content"]).passages(["one"])
    assert sent(stub) == ["one", "one"]


def test_what_was_answered_before_an_end_is_not_asked_again():
    def until(call):
        return good(call) if call.number < 2 else error(503, "busy")

    with Stub(until) as stub:
        with pytest.raises(UserError, match=r"503: busy.*What was embedded is kept: run the same command again"):
            Encoder(model_of(stub, concurrency=1)).passages(PASSAGES)
        before = sent(stub)[:8]
        stub.plan = good
        found = Encoder(model_of(stub)).passages(PASSAGES)
    assert found == pytest.approx(unit(PASSAGES), abs=1e-6)
    assert sorted(sent(stub)[12 - 2 :]) == sorted(set(PASSAGES) - set(before))  # 2 were in the call that failed


def test_answers_in_flight_are_kept_when_another_call_fails():
    def plan(call):
        if any("igloo" in text for text in call.body["input"]):
            return error(400, "no")
        return replace(good(call), latency=0.0 if call.number == 0 else 0.5)

    with Stub(plan) as stub:
        with pytest.raises(UserError, match="refuses a text of"):
            Encoder(failed := model_of(stub)).passages(PASSAGES)
        model = model_of(stub)
        assert model.remote.store.lacking(PASSAGES) == PASSAGES[8:]  # the last call's, with igloo and jelly
    assert failed.remote.sent == {"texts": 8, "calls": 2, "tokens": 24}  # what came while it was ending too


def test_a_batch_that_is_too_large_is_halved_and_later_ones_are_no_larger():
    def plan(call):
        return good(call) if len(call.body["input"]) <= 2 else error(413, "at most 2 inputs")

    with Stub(plan) as stub:
        found = Encoder(model_of(stub, batch_size=8)).passages(PASSAGES)
    assert found == pytest.approx(unit(PASSAGES), abs=1e-6)
    assert [len(call.body["input"]) for call in stub.calls] == [8, 4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, "bad key"), "does not take a request without a key"),
        (error(404, "no such model"), r"has no model m, or is no such server .* Set model\.model to one"),
        (error(400, "maximum context length is 8192"), r"refuses a text of \d+ characters alone \(400: maximum"),
        (error(429, "slow down"), "429: slow down"),
        (error(429, "pay", code="insufficient_quota"), "the account has no money left"),
        (Reply(hang=True), "no answer within 0.3 seconds"),
        (Reply(body={"error": "overloaded"}), "answered with no completion: overloaded"),
        (Reply(body={"data": []}), "gave 0 vectors for 1 texts"),
        (Reply(body={"data": [{"index": 1, "embedding": [1.0] * SIZE}]}), r"did not number them 0, 1"),
        (Reply(body={"data": [{"index": 0, "embedding": [1.0] * 8}]}), r"of 8 numbers, and model\.dimensions=16"),
        (Reply(body={"data": [{"index": 0, "embedding": [None] * SIZE}]}), "1 of 1 vectors with NaN, infinite"),
        (Reply(body={"data": [{"index": 0, "embedding": [0.0] * SIZE}]}), "only zero numbers; none was kept"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_and_nothing_is_kept(reply, said):
    with Stub(lambda call: reply) as stub:
        model = model_of(stub, timeout=0.3)
        with pytest.raises(UserError, match=said):
            Encoder(model).passages(["one"])
        assert model.remote.store.lacking(["one"]) == ["one"]


def test_a_call_that_fails_in_passing_is_sent_again_after_the_wait_that_is_asked_for():
    def plan(call):
        return error(429, "slow down", retry_after="0.01") if call.number < 2 else good(call)

    with Stub(plan) as stub:
        assert Encoder(model_of(stub, retries=2)).passages(["one"]) == pytest.approx(unit(["one"]), abs=1e-6)
    assert len(stub.calls) == 3


def test_a_limit_on_the_rate_that_lets_others_through_is_no_failure_however_often_it_is_met(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    texts = [f"text {number}" for number in range(20)]

    def plan(call):
        if call.body["input"] == [texts[1]] and sent(stub).count(texts[1]) <= 3:
            return replace(error(429, "slow down"), latency=0.3)  # by then others are answered
        return replace(good(call), latency=0.1)

    with Stub(plan) as stub:
        assert Encoder(model_of(stub, retries=1, batch_size=1)).passages(texts) == pytest.approx(unit(texts), abs=1e-6)
    assert sent(stub).count(texts[1]) == 4


def test_a_wait_that_one_call_is_asked_for_holds_for_the_others_too(monkeypatch):
    monkeypatch.setattr(remote, "SPREAD", 0.01)
    start, times, lock = time.monotonic(), [], threading.Lock()

    def plan(call):
        with lock:
            times.append(time.monotonic() - start)
            if len(times) == 2:
                return error(429, "slow down", retry_after="1")
        return replace(good(call), latency=0.1)

    with Stub(plan) as stub:
        Encoder(model_of(stub, retries=1, batch_size=1, concurrency=2)).passages(PASSAGES[:8])
    # the second is refused; the third is in flight by then, and all others wait
    assert len([each for each in times if times[1] + 0.15 < each < times[1] + 1]) == 0


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_what_is_about_to_be_sent_is_said_first_and_a_cap_below_it_sends_nothing(caplog):
    caplog.set_level("INFO", logger="embexp")
    texts = ["x" * 30, "y" * 60, "x" * 30]  # at three bytes a token: 10 and 20
    with Stub(good) as stub:
        model_of(stub, price=2.0).remote.announce(texts)
        assert "2 of 2 texts go to" in caplog.text
        assert "about 30 tokens, 0.0001 USD, in 1 call" in caplog.text
        for name, cap in (("calls", 0), ("tokens", 29), ("usd", 0.00005)):
            model = model_of(stub, price=2.0, budget=Budget(**{name: cap}))
            with pytest.raises(
                UserError, match=rf"about 30 tokens.*model\.budget\.{name}=.* would be exceeded.*Nothing was"
            ):
                model.remote.announce(texts)
            with pytest.raises(
                UserError, match=rf"about 30 tokens.*model\.budget\.{name}=.*Raise the cap\. Nothing was"
            ):
                Encoder(model).passages(texts)  # a text that nobody has announced
        assert stub.calls == []
        Encoder(model_of(stub)).passages(texts)
        model_of(stub, budget=Budget(calls=0)).remote.announce(texts)  # all kept: nothing to pay
        assert "all 2 texts are kept: nothing is sent" in caplog.text


def test_what_was_announced_is_not_told_again_and_what_was_not_is_told_before_it_is_sent(caplog):
    caplog.set_level("INFO", logger="embexp")
    with Stub(good) as stub:
        model = model_of(stub)
        model.remote.announce(["one", "two"])
        caplog.clear()
        Encoder(model).passages(["one"])
        Encoder(model).passages(["two"])
        assert "texts go to" not in caplog.text
        caplog.clear()
        Encoder(model).passages(["two", "three"])
    assert "1 of 2 texts go to" in caplog.text
    assert caplog.text.index("go to") < caplog.text.index("1 text embedded by m")


def test_a_cap_counts_what_earlier_runs_sent():
    with Stub(good) as stub:
        Encoder(model_of(stub)).passages(["one", "two", "three"])  # 9 tokens by the server's count, in a call
        with pytest.raises(UserError, match=r"model\.budget\.calls=1 would be exceeded: 1 spent on the vectors of m"):
            Encoder(model_of(stub, budget=Budget(calls=1))).passages(["four"])
        with pytest.raises(UserError, match=r"model\.budget\.tokens=10 would be exceeded: 9 spent"):
            Encoder(model_of(stub, budget=Budget(tokens=10))).passages(["seven"])  # 2 tokens
        Encoder(model_of(stub, budget=Budget(tokens=11))).passages(["seven"])
    assert len(stub.calls) == 2


def test_an_endpoint_that_is_loaded_again_has_spent_what_it_did_once():
    with Stub(good) as stub:
        Encoder(model_of(stub)).passages(["one", "two", "three"])  # 9 tokens
        settings = {"base_url": stub.base_url, "api_key_env": None, "dimensions": SIZE, "budget": Budget(tokens=13)}
        source = OpenAIEmbeddings(model="m", **settings)
        first, again = (source.load([]) for _ in range(2))
        Encoder(again).passages(["seven"])  # 2 tokens are reserved and 3 booked: 12 of 13 are spent
        with pytest.raises(UserError, match=r"model\.budget\.tokens=13 would be exceeded: 12 spent"):
            Encoder(first).passages(["eight"])
    assert first.remote.sent == {"texts": 1, "calls": 1, "tokens": 3}


def test_a_call_without_an_answer_counts_as_if_it_had_been_billed():
    with Stub(lambda call: Reply(hang=True)) as stub:
        with pytest.raises(UserError, match="no answer within"):
            Encoder(model_of(stub, timeout=0.2)).passages(["x" * 30])
        assert model_of(stub).remote.store.spent().tokens == 10


def test_a_usd_cap_needs_a_price_and_other_mistakes_are_said_together():
    with pytest.raises(UserError) as raised:
        OpenAIEmbeddings(
            model="m", dimensions=0, budget=Budget(usd=1), prompts={"title": "x"}, api_key_env="sk-abc def"
        )
    said = str(raised.value)
    for words in (
        "model.dimensions=0",
        "model.price is not",
        "model.prompts has title",
        "model.api_key_env must be the",
    ):
        assert words in said
    assert "sk-abc" not in said


# --- what is not known here -------------------------------------------------------------------------------------------


def test_without_a_tokenizer_texts_are_sorted_by_characters_and_nobody_says_that_none_is_cut():
    with Stub(good) as stub:
        model = model_of(stub)
        assert lengths(model, ["abc", "a"], "q: ").tolist() == [6, 4]
        assert count_truncated(model, toy_set()) is None
        with pytest.raises(UserError, match=r"its vectors can be had, its weights not\. Set model\.adapter"):
            model.loaded()


def test_training_without_an_adapter_is_refused_before_anything_is_loaded():
    chosen = "model=openai_embeddings", "trainer=adapter"
    assert mistakes_in(composed(*chosen)) == []
    (problem,) = mistakes_in(composed(*chosen, "model.adapter=null"))
    assert "an endpoint's weights can't be trained: set model.adapter=query_linear" in problem
    assert mistakes_in(composed("model=openai_embeddings", "trainer=none", "model.adapter=null")) == []
    found = mistakes_in(composed(*chosen, "model.api_key_env=sk-123", "trainer.processes=2", "cache=false"))
    assert len(found) == 3
    assert "sk-123" not in "".join(found)
    found = mistakes_in(composed(*chosen, "loss=cached_mnrl"))
    assert any("needs a transformer and the model is endpoint" in problem for problem in found)


def test_the_file_in_conf_says_what_the_class_takes():
    node = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "model" / "openai_embeddings.yaml"))
    assert node.keys() - {"_target_", "kind"} == {field.name for field in fields(OpenAIEmbeddings)}


# --- layers behind it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_layers_give_the_same_vectors_here_and_by_the_lines_of_their_card(kind, tmp_path):
    with Stub(good) as stub:
        base = model_of(stub, adapter=kind)
        model = trained(adapter_of(base, Encoder(base), rows()), tmp_path / "run")
        save(model, tmp_path / "model", run="a run")
        right = Encoder(model)
        again = Encoder(head_of(tmp_path / "model", base, Encoder(base)))
        assert abs(right.queries(QUERIES) - unit(QUERIES)).max() > 0.01
        for texts, of in ((QUERIES, "queries"), (PASSAGES, "passages")):
            assert getattr(again, of)(texts) == pytest.approx(getattr(right, of)(texts), abs=1e-6)
        with pytest.raises(UserError, match=r"model\.path=.* holds layers alone, which read the vectors of m at http"):
            Transformer(path=str(tmp_path / "model"))
        lines = {}
        exec(OF_LAYERS[kind].replace("path/to/model", str(tmp_path / "model")), lines)
        assert [lines["turned"](vector(text)) for text in QUERIES] == pytest.approx(right.queries(QUERIES), abs=1e-5)
        if kind == "query_linear":
            assert right.passages(PASSAGES) == pytest.approx(Encoder(base).passages(PASSAGES), abs=1e-6)
    found = stamp.of_model(tmp_path / "model")
    assert (found["behind"], found["adapter"]) == (f"m at {stub.base_url}", kind)
    assert set(sent(stub)) == {*QUERIES, *PASSAGES}
    assert len(sent(stub)) == len(QUERIES) + len(PASSAGES)


# --- whole runs -------------------------------------------------------------------------------------------------------


def arguments(stub, pairs, folder):
    """A run on the vectors of a stub."""
    model = [f"model.base_url={stub.base_url}", "model.api_key_env=CANARY", f"model.dimensions={SIZE}"]
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group", "paraphrase=null"]
    return ["model=openai_embeddings", *model, "model.retries=0", "model.batch_size=40", "model.concurrency=1", *data,
            "trainer=adapter", "trainer.max_steps=12", "logger=none", f"cache={folder}"]  # fmt: skip


def test_a_dry_run_counts_the_guard_set_and_what_a_reranker_is_trained_on_too(embexp, pairs, kept, sources, tmp_path):
    with Stub(good) as stub:
        call = [*arguments(stub, pairs, kept), "model.api_key_env=null", "model.budget.calls=0"]
        guard = [word.replace("dataset", "guard_dataset", 1) for word in sources["beir"]]
        guarded = embexp(*call, *guard)
        start = f"reranker.path={tiny_transformer(tmp_path / 'tiny')}"
        untuned = [word for word in call if not word.startswith("trainer.")]
        reranked = embexp(*untuned, "trainer=none", "reranker=trained", start)
        assert [guarded.code, reranked.code, stub.calls] == [1, 1, []]
    asked = sum(guarded.result["forgetting"]["queries"].values())
    assert asked > 10
    assert f"{180 + 30 + asked} of {210 + asked} texts go to" in guarded.output  # its corpus has 30 passages
    assert "180 of 180 texts go to" in reranked.output


def test_a_run_that_was_interrupted_pays_only_once_and_is_searched_held_against_today_and_not_exported(
    embexp, pairs, kept, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("CANARY", KEY)
    with Stub(lambda call: good(call) if call.number < 3 else error(401, f"no key {KEY}")) as stub:
        call = arguments(stub, pairs, kept)
        dry = embexp(*call, "model.budget.calls=0")
        assert (dry.code, len(stub.calls)) == (1, 0)
        assert "180 of 180 texts go to" in dry.output  # 60 passages and 120 questions
        ended = embexp(*call)
        assert ended.code == 1
        assert "does not take the key in CANARY (401: no key [key])" in ended.output
        stub.plan = good
        run = embexp(*call)
        assert run.code == 0, run.output
        # the texts of the call that was refused are the only ones that were sent twice
        assert len(sent(stub)) == 180 + len(stub.calls[3].body["input"])
        assert run.result["counts"]["sent"]["texts"] == 180 - sum(len(each.body["input"]) for each in stub.calls[:3])
        assert run.result["counts"]["truncated"] is None
        assert run.result["delta"]["recall@10"]["queries"] == run.result["counts"]["queries"]["test"]
        before = len(stub.calls)
        finished = opened(str(run.folder))
        with pytest.raises(UserError, match=r"layers behind text-embedding-3-small at http.*README\.md"):
            export(finished, name="fp16", out=tmp_path / "out", max_loss=1.0, changed_data=False)
        main(["--model", "tuned", "--json", str(run.folder), "what is waa"])
        assert json.loads(capfd.readouterr().out)["tuned"]["hits"][0]["known"] is not None
        assert len(stub.calls) <= before + 1  # the question, unless it was one of the data's
        before = len(stub.calls)
        with pytest.raises(SystemExit):  # a cap of today's, where the run had none
            main(["--model.budget.calls", "0", str(run.folder), "something that nobody has asked"])
        assert "model.budget.calls=0 would be exceeded" in capfd.readouterr().err
        later = tmp_path / f"later{pairs.suffix}"
        later.write_text(re.sub("stands in (w[a-f])", r"is now in \1", pairs.read_text()))
        capped = drift_config(later, kept) | {"model": {"budget": {"usd": None, "tokens": None, "calls": 0}}}
        with pytest.raises(UserError, match=r"model\.budget\.calls=0 would be exceeded.*Nothing was sent"):
            drift(str(run.folder), capped)
        record, _ = drift(str(run.folder), drift_config(pairs, kept))
        assert (record["verdict"], len(stub.calls)) == ("ok", before)
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in everything + (dry.output + ended.output + run.output).encode()
    card = (run.folder / "model" / "README.md").read_text()
    assert "This folder holds layers alone" in card
    assert OF_LAYERS["query_linear"] in card


def drift_config(pairs, folder):
    node = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "drift.yaml"))
    return {key: value for key, value in node.items() if key != "hydra"} | {
        "documents": str(pairs),
        "cache": str(folder),
    }
