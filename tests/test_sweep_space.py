"""Search spaces: Hydra's sweep syntax as what Optuna draws from, conditions, and what is refused."""

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from embexp.errors import UserError
from embexp.sweep.space import parse


def space(params=None, where=None, *overrides):
    return parse(params or {}, where or {}, OverridesParser.create().parse_overrides(list(overrides)), complete=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.05, 0.5)", FloatDistribution(0.05, 0.5)),
        ("interval(1, 4)", FloatDistribution(1, 4)),
        ("int(interval(1, 4))", IntDistribution(1, 4)),
        ("tag(log, interval(1e-6, 1e-4))", FloatDistribution(1e-6, 1e-4, log=True)),
        ("tag(log, int(interval(8, 64)))", IntDistribution(8, 64, log=True)),
        ("range(16, 128, 16)", IntDistribution(16, 112, step=16)),
        ("range(0, 1, 0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("choice(bm25, hard)", CategoricalDistribution(["bm25", "hard"])),
        ("1,2,null", CategoricalDistribution([1, 2, None])),
        ("choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_hydras_syntax_says_what_optuna_draws_from(text, expected):
    (parameter,) = space({"key": text}).parameters
    assert parameter.distribution == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("interval(5, 1)", "upside down; write interval(1.0,5.0)"),
        ("tag(log, interval(0, 1))", "numbers above 0"),
        ("tag(linear, interval(0, 1))", "there is no tag linear"),
        ("range(5, 5)", "the range is empty"),
        ("tag(log, range(1, 100))", "is for intervals"),
        ("tag(log, choice(1, 2))", "is for intervals"),
        ("glob(*)", "list what it may be"),
        ("choice(", "not in Hydra's sweep syntax"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_with_its_reason(text, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
        space({"key": text})


def test_a_space_without_parameters_is_refused():
    with pytest.raises(UserError, match="the search space is empty"):
        space({"loss": "mnrl"})


def test_all_mistakes_are_listed_together():
    with pytest.raises(UserError) as error:
        space({"a": "interval(2,1)", "b": "range(1,1)"}, {"loss=x": {"c": "1,2"}})
    assert len(error.value.problems) == 3


def test_the_command_line_has_the_last_word_on_a_key():
    found = space({"a": "1,2", "b": "1,2"}, {}, "++a=7", "b=interval(0,1)")
    assert {each.key: each.distribution for each in found.parameters} == {"b": FloatDistribution(0, 1)}


LOSSES = {"loss": "choice(mnrl, triplet)"}
MARGIN = {"loss=triplet": {"loss.triplet_margin": "interval(0.1, 0.5)", "negatives": "hard"}}


def test_a_conditional_parameter_is_searched_only_where_its_choice_is_made():
    found = space(LOSSES, MARGIN)
    mnrl = found.suggest(optuna.trial.FixedTrial({"loss": "mnrl"}))
    name = "loss.triplet_margin if loss=triplet"
    chosen = {"loss": "triplet", name: 0.25, "negatives if loss=triplet": "hard"}
    triplet = found.suggest(optuna.trial.FixedTrial(chosen))
    assert mnrl == {"loss": "mnrl"}
    assert triplet == {"loss": "triplet", "loss.triplet_margin": "0.25", "negatives": "hard"}


def test_a_loss_fixed_on_the_command_line_leaves_the_other_branches_out():
    found = space({**LOSSES, "seed": "1,2"}, MARGIN, "loss=mnrl")
    assert [each.key for each in found.parameters] == ["seed"]
    kept = space({**LOSSES, "seed": "1,2"}, MARGIN, "loss=triplet")
    chosen = kept.suggest(optuna.trial.FixedTrial({"seed": 1, "loss.triplet_margin": 0.2}))
    assert chosen == {"seed": "1", "loss.triplet_margin": "0.2", "negatives": "hard"}


def test_a_condition_on_a_number_that_the_command_line_fixes_is_met():
    params, where = {"epochs": "choice(1,2)", "seed": "1,2"}, {"epochs=2": {"warmup": "interval(0, 1)"}}
    assert [each.name for each in space(params, where, "epochs=2").parameters] == ["seed", "warmup"]
    assert [each.name for each in space(params, where, "epochs=1").parameters] == ["seed"]


def test_values_that_python_takes_for_equal_stay_apart():
    (parameter,) = space({"key": "choice(1,true)"}).parameters
    assert parameter.distribution.choices == ("1", "True")
    one, other = (space({"key": text}).described() for text in ("1,2", "'1','2'"))
    assert one != other


def test_a_condition_on_what_is_never_chosen_is_refused():
    with pytest.raises(UserError, match="loss is one of mnrl, triplet"):
        space(LOSSES, {"loss=cosent": {"loss.scale": "1,2"}})
    with pytest.raises(UserError, match="dataset is not searched"):
        space(LOSSES, {"dataset=pairs": {"limit": "1,2"}})


def test_branches_hold_every_choice_and_both_ends_of_every_interval():
    always, triplet = space(LOSSES, MARGIN).branches()
    assert always == ["loss=mnrl,triplet"]
    assert triplet == ["loss=triplet", "loss.triplet_margin=choice(0.1,0.5)", "negatives=hard"]


def test_two_spaces_are_described_alike_only_when_they_are_alike():
    one = space({"a": "interval(0, 1)"}).described()
    assert one == space({"a": "interval(0.0, 1.0)"}).described()
    assert one != space({"a": "interval(0, 2)"}).described()
    assert one != space({"a": "tag(log, interval(0.1, 1))"}).described()


def test_a_number_is_written_so_that_it_comes_back_the_same():
    found = space({"a": "tag(log, interval(1e-6, 1e-4))"})
    value = 3.7125432199e-05
    text = found.suggest(optuna.trial.FixedTrial({"a": value}))["a"]
    assert OverridesParser.create().parse_override(f"a={text}").value() == value
