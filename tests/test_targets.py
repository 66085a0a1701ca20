"""Signatures read from source equal the real ones, forbidden targets are refused, and nothing heavy is imported."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import subprocess
import sys

import pytest
import yaml
from hydra.utils import get_object

from embexp.config import places
from embexp.config.components import build
from embexp.config.targets import Definition, find, forbidden, parameters, resolve
from embexp.config.value_types import mistake
from embexp.errors import UserError
from tests.command import REPOSITORY

LOSSES = "sentence_transformers.sentence_transformer.losses"
ARGUMENTS = "sentence_transformers.SentenceTransformerTrainingArguments"


def all_targets(node):
    """Every _target_ of a config node, nested ones included."""
    found = {node["_target_"]} if "_target_" in node else set()
    return found.union(*(all_targets(value) for value in node.values() if isinstance(value, dict)))


CONFIGURED = sorted(
    {
        target
        for group in ("loss", "evaluator", "model", "logger", "negatives", "dataset")
        for file in (REPOSITORY / "conf" / group).glob("*.yaml")
        for target in all_targets(yaml.safe_load(file.read_text()))
    }
)


def real_parameters(thing):
    """(name, required) as `inspect` sees them; None where any name is accepted."""
    if hasattr(thing, "__deprecated__"):  # typing_extensions.deprecated hides the signature of the class
        thing = inspect.Signature(list(inspect.signature(thing.__init__).parameters.values())[1:])
    signature = thing if isinstance(thing, inspect.Signature) else inspect.signature(thing)
    if any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        return None
    return [(each.name, each.default is each.empty) for each in signature.parameters.values()]


def read_parameters(definition: Definition | None):
    assert definition is not None
    found = parameters(definition)
    return None if found is None else [(each.name, each.required) for each in found.values()]


def test_the_configs_name_losses_and_evaluators():
    assert len(CONFIGURED) >= 10
    nested = f"{LOSSES}.TripletDistanceMetric.COSINE"
    assert {f"{LOSSES}.TripletLoss", nested, "embexp.evaluation.evaluators.Pairs"} <= set(CONFIGURED)


@pytest.mark.parametrize("target", CONFIGURED)
def test_a_configured_targets_parameters_equal_inspects(target):
    assert read_parameters(resolve(target, allowed=[])) == real_parameters(get_object(target))


def test_parameters_of_every_loss_of_the_library_equal_inspects():
    losses = get_object(LOSSES)
    classes = {name: getattr(losses, name) for name in losses.__all__}
    real = {name: real_parameters(each) for name, each in classes.items() if not issubclass(each, enum.Enum)}
    assert len(real) > 20
    assert {name: read_parameters(find(f"{LOSSES}.{name}")) for name in real} == real


def test_training_arguments_equal_the_dataclass_fields():
    fields = [field for field in dataclasses.fields(get_object(ARGUMENTS)) if field.init]
    missing = dataclasses.MISSING
    required = {field.name: field.default is missing and field.default_factory is missing for field in fields}
    assert {name: each.required for name, each in parameters(find(ARGUMENTS)).items()} == required
    assert len(required) > 100


ODD = """
from dataclasses import dataclass, field
from typing import ClassVar

@dataclass
class Parent:
    first: int
    shared: ClassVar[int] = 1
    made: int = field(init=False, default=2)

@dataclass
class Child(Parent):
    second: list = field(default_factory=list)
    third: int = field(kw_only=True)

class Plain(Child):
    def __init__(self, a, /, b=1, *, c, d=2): ...

class Heir(Plain): ...
class Empty: ...
def anything(a, **options): ...
chosen = lambda left, right=1: left
"""


@pytest.mark.parametrize("name", ["Parent", "Child", "Plain", "Heir", "Empty", "anything", "chosen"])
def test_odd_signatures_are_read_as_python_reads_them(tmp_path, monkeypatch, name):
    (tmp_path / "odd_signatures.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    target = f"odd_signatures.{name}"
    found, real = read_parameters(resolve(target, allowed=["odd_signatures"])), real_parameters(get_object(target))
    assert (found and sorted(found)) == (real and sorted(real))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"{LOSSES}.margin_mse.torch.load", "lives in the package 'torch'"),
        ("embexp.models.embedding_model.torch.load", "lives in the package 'torch'"),
        ("subprocess.Popen", "lives in the package 'subprocess'"),
        ("os.system", "was not found"),
        ("builtins.eval", "was not found"),
        ("embexp.no_such_thing", "was not found"),
        ("", "was not found"),
        (LOSSES, "is a module"),
    ],
)
def test_a_target_outside_the_allowed_packages_is_refused(target, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        resolve(target, allowed=[])
    assert repr(target) in str(refusal.value)


UTIL = "sentence_transformers.util"


@pytest.mark.parametrize(
    "target",
    [
        f"{UTIL}.import_from_string", f"{UTIL}.http_get", f"{UTIL}.import_module_class",
        "sentence_transformers.SentenceTransformer", "sentence_transformers.CrossEncoder",
        "embexp.hub.snapshot", "embexp.models.sources.snapshot", "embexp.cli.main", "embexp.results.result.write",
        "embexp.cache.json_kept", "embexp.config.components.build", "embexp.mine.written.write",
        "embexp.mine.mining.mine", "embexp.mine.client.Client", "embexp.tracking.Tracker",
        "embexp.service.journal.Journal",
        "embexp.data.manifest.write",
    ],
)  # fmt: skip
def test_what_fetches_writes_or_imports_is_refused_though_its_package_is_allowed(target):
    with pytest.raises(UserError, match="which a config can't name") as refusal:
        resolve(target, allowed=[])
    assert "set allowed_packages=[" in str(refusal.value)
    with pytest.raises(UserError, match="which a config can't name"):
        build({"_target_": target}, allowed=[])
    assert resolve(target, allowed=[target.partition(".")[0]])


@pytest.mark.parametrize(
    "target",
    [
        "embexp.models.embedding_model.Transformer.load",
        "embexp.models.embedding_model.Transformer.__init__.__globals__",
    ],
)
def test_methods_and_private_parts_are_no_targets(target):
    with pytest.raises(UserError, match=r"is a method|private part"):
        resolve(target, allowed=[])


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"a": {"guide": [{"trust_remote_code": True}]}}, r"a.guide\[0\].trust_remote_code=True would run code"),
        ({"a": {"trust_remote_code": "yes"}}, "a.trust_remote_code='yes' would run code"),
        ({"a": {"_args_": [1]}}, "a._args_ is not taken; give arguments by name"),
        ({"a": {"_recursive_": False}}, "a._recursive_ is not taken"),
        ({"a": ["x", "${oc.env:HOME}"]}, r"a\[1\] holds \$\{...\} as text"),
        ({"logger": {"api_key": "canary"}}, "logger.api_key: a key never enters a config"),
    ],
)
def test_what_no_config_may_say_is_refused_at_any_depth_before_and_while_building(node, words):
    (problem,) = forbidden(node)
    assert re.match(words, problem)
    assert "canary" not in problem
    with pytest.raises(UserError, match=words):
        build(node, allowed=[])


def test_harmless_values_of_the_same_keys_are_taken():
    assert list(forbidden({"trust_remote_code": False, "token": None, "api_key_name": "OPENAI_API_KEY"})) == []


def test_a_target_in_a_list_is_refused_too():
    hidden = {"_target_": f"{LOSSES}.ContrastiveLoss", "_partial_": True, "margin": [{"_target_": "subprocess.Popen"}]}
    with pytest.raises(UserError, match="lives in the package 'subprocess'"):
        build(hidden, allowed=[])


def test_a_foreign_target_is_refused_before_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_target.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="evil_target"):
        build({"_target_": "evil_target.Model"}, allowed=[])
    assert not (tmp_path / "ran").exists()
    assert type(build({"_target_": "evil_target.Model"}, allowed=["evil_target"])).__name__ == "Model"


def test_a_package_can_be_allowed():
    assert resolve(f"{LOSSES}.margin_mse.torch.load", allowed=["torch"]).package == "torch"


@pytest.mark.parametrize(
    ("target", "name", "value", "words"),
    [
        (ARGUMENTS, "learning_rate", "abc", "a number"),
        (ARGUMENTS, "learning_rate", 1, None),
        (ARGUMENTS, "learning_rate", True, "a number"),
        (ARGUMENTS, "max_steps", 1.5, "a whole number"),
        (ARGUMENTS, "max_steps", True, "a whole number"),
        (ARGUMENTS, "bf16", "yes", "true or false"),
        (ARGUMENTS, "eval_strategy", "weekly", "one of no, steps, epoch"),
        (ARGUMENTS, "eval_strategy", "epoch", None),
        (f"{LOSSES}.MultipleNegativesRankingLoss", "scale", "high", "a number"),
        (f"{LOSSES}.MultipleNegativesRankingLoss", "partition_mode", "x", "one of joint, per_direction"),
        ("embexp.models.embedding_model.Transformer", "max_seq_length", "x", "a whole number or null"),
        ("embexp.models.embedding_model.Transformer", "max_seq_length", None, None),
        ("embexp.models.embedding_model.Transformer", "prompts", {"query": 1}, "a mapping to a text or null"),
        ("embexp.models.embedding_model.Transformer", "dtype", "half", "one of auto, float32, bfloat16"),
        ("embexp.evaluation.evaluators.Retrieval", "k_values", [1, "x"], "a list, each a whole number"),
        ("embexp.evaluation.evaluators.Retrieval", "k_values", [1, 3], None),
        ("embexp.datasets.docstrings.load", "split", 3, "a Shares, written as a mapping with _target_"),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_in_words(target, name, value, words):
    assert mistake(value, parameters(find(target))[name]) == words


READ_ALL = """
import json, sys, time
from embexp.config.targets import parameters, resolve
found = [parameters(resolve(target, allowed=[])) for target in json.loads(sys.argv[1])]
heavy = [name for name in ("torch", "transformers", "sentence_transformers", "hydra", "numpy") if name in sys.modules]
print(json.dumps([len(found), heavy, time.process_time()]))
"""


def test_reading_every_configured_target_imports_nothing_heavy_and_takes_under_half_a_second():
    asked = [*CONFIGURED, ARGUMENTS]
    command = [sys.executable, "-c", READ_ALL, json.dumps(asked)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60).stdout
    count, heavy, seconds = json.loads(answer)
    assert (count, heavy) == (len(asked), [])
    assert seconds < 0.5  # of processor time, the interpreter's own start included


@pytest.mark.parametrize("module", places.MOVED)
def test_a_stored_config_of_an_earlier_version_is_built_and_a_new_one_is_told_the_place(module):
    assert find(places.MOVED[module]) is not None
    assert places.moved(f"{module}.Any") == f"{places.MOVED[module]}.Any"
    with pytest.raises(UserError, match=re.escape(f"; it is {places.MOVED[module]}.Any now")):
        resolve(f"{module}.Any", allowed=[])


def test_a_stored_node_of_an_earlier_version_is_built():
    node = {"_target_": "embexp.splits.Shares", "test": 0.2, "dev": 0.1}
    assert type(build(node, allowed=[])).__module__ == "embexp.data.splits"
