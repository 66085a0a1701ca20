"""What a sweep searches, in Hydra's own sweep syntax. Called by `arguments`, which checks it, and by `sweep.sweeper`.

| text                              | searched as                                              |
|-----------------------------------|----------------------------------------------------------|
| `interval(0.05, 0.5)`             | a real number                                            |
| `int(interval(1, 4))`             | a whole number, both ends included                       |
| `tag(log, interval(1e-6, 1e-4))`  | either, by its logarithm                                 |
| `range(16, 128, 16)`              | steps, the end left out, as in any multirun              |
| `choice(bm25, hard)` or `a,b`     | one of these                                             |

Knows nothing of losses or models: what a parameter may be is checked as any override is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from embexp.errors import UserError, listed

ALWAYS = ("", "")  # a condition that is met in every trial
PLAIN = (str, bool, int, float, type(None))  # what the study can hold as it is


@dataclass(frozen=True)
class Parameter:
    """One thing that is searched.

    key: the override's, such as loss or trainer.learning_rate. texts: the choices as overrides are written, by the
    value that the study knows; empty for numbers. condition: (key, text) of a choice without which it is not searched.
    """

    key: str
    distribution: BaseDistribution
    texts: Mapping[Any, str] = field(default_factory=dict)
    condition: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """What the study calls it: one name, one distribution."""
        return self.key if self.condition is None else f"{self.key} if {'='.join(self.condition)}"

    def text(self, value: Any) -> str:
        """A value as it stands in an override."""
        return self.texts[value] if self.texts else repr(value)


@dataclass(frozen=True)
class Space:
    """All parameters, the conditional ones last, and what the sweep file fixes."""

    parameters: Sequence[Parameter]
    fixed: Mapping[str, str]

    def suggest(self, trial: Any) -> dict[str, str]:
        """Override key -> text, drawn from an Optuna trial (or taken from it, where it knows them already)."""
        chosen = dict(self.fixed)
        for parameter in self.parameters:
            if parameter.condition is not None:
                key, text = parameter.condition
                if chosen.get(key) != text:
                    continue
            chosen[parameter.key] = parameter.text(_suggested(trial, parameter))
        return chosen

    def described(self) -> dict[str, str]:
        """Name -> what it may be, as text: two spaces are equal when these are."""
        return {each.name: _described(each) for each in self.parameters} | dict(self.fixed)

    def branches(self) -> Iterator[list[str]]:
        """Overrides that, checked one list after the other, show every parameter with its extreme values.

        The first list holds the unconditional ones with all their values; then comes one for each condition.
        """
        always = [f"{key}={text}" for key, text in self.fixed.items()]
        always += [f"{each.key}={_swept(each)}" for each in self.parameters if each.condition is None]
        yield always
        conditions = dict.fromkeys(each.condition for each in self.parameters if each.condition is not None)
        for condition in conditions:
            key, text = condition
            others = [override for override in always if override.partition("=")[0] != key]
            inside = [f"{each.key}={_swept(each)}" for each in self.parameters if each.condition == condition]
            yield [*others, f"{key}={text}", *inside]


def parse(
    params: Mapping[str, Any], where: Mapping[str, Mapping[str, Any]], overrides: Sequence[Override], *, complete: bool
) -> Space:
    """The space of a sweep file and a command line, which has the last word on a key.

    params: key -> text. where: `loss=triplet` -> params that are searched only then. overrides: of the command line;
    those with one value take their key out of the space. complete: whether a space without parameters is a mistake.
    Raises UserError with all mistakes.
    """
    problems: list[str] = []
    said = {override.key_or_group: override for override in overrides}
    parameters: list[Parameter] = []
    fixed: dict[str, str] = {}
    for key, text in params.items():
        if key not in said:
            _add(_parsed(key, text, problems), parameters, fixed, problems)
    for override in said.values():
        if override.is_sweep_override():
            _add(override, parameters, fixed, problems)
    for condition, inside in where.items():
        parsed = _condition(condition, parameters, fixed, said, problems)
        for key, text in inside.items():
            if key not in said and parsed is not None:
                condition_of = None if parsed == ALWAYS else parsed
                _add(_parsed(key, text, problems), parameters, fixed, problems, condition=condition_of)
    if not parameters and complete and not problems:
        problems.append(
            "the search space is empty: name what to search, such as "
            "'trainer.learning_rate=tag(log,interval(1e-6,1e-4))'"
        )
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Space(parameters, fixed)


def _parsed(key: str, text: Any, problems: list[str]) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        problems.append(f"hydra.sweeper.params: {key}: {text!r} is not in Hydra's sweep syntax, such as choice(a, b)")
        return None


def _condition(
    condition: str,
    parameters: Sequence[Parameter],
    fixed: Mapping[str, str],
    said: Mapping[str, Override],
    problems: list[str],
) -> tuple[str, str] | None:
    """A condition as (key, text), ALWAYS where it is met; None where it can't be, which is a mistake unless the command
    line has decided so."""
    key, equals, text = condition.partition("=")
    decided = said.get(key)
    always = decided.get_value_element_as_str() if decided is not None and not decided.is_sweep_override() else None
    if (always := always or fixed.get(key)) is not None:
        return ALWAYS if always == text else None
    of_key = [each for each in parameters if each.key == key]
    if not equals or not of_key:
        problems.append(f"hydra.sweeper.where: {condition}: {key} is not searched; conditions are choices, key=choice")
        return None
    choices = dict.fromkeys(choice for each in of_key for choice in each.texts.values())
    if text not in choices:
        if decided is None:  # a command line may leave some of a file's choices out
            problems.append(f"hydra.sweeper.where: {condition}: {key} is one of {listed(choices, most=20)}")
        return None
    return key, text


def _add(
    override: Override | None,
    parameters: list[Parameter],
    fixed: dict[str, str],
    problems: list[str],
    *,
    condition: tuple[str, str] | None = None,
) -> None:
    if override is None:
        return
    if not override.is_sweep_override():
        if condition is None:
            fixed[override.key_or_group] = override.get_value_element_as_str()
            return
        override = OverridesParser.create().parse_override(
            f"{override.key_or_group}=choice({override.get_value_element_as_str()})"
        )
    key = override.get_key_element().lstrip("+")
    try:
        distribution, texts = _distribution(override)
    except UserError as error:
        problems += [f"{override.input_line}: {problem}" for problem in error.problems]
        return
    parameters.append(Parameter(key, distribution, texts, condition))


def _distribution(override: Override) -> tuple[BaseDistribution, dict[Any, str]]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value), {}
    if isinstance(value, RangeSweep):
        _refuse_tags(value.tags)
        return _steps(list(value.range()), value), {}
    if not isinstance(value, ChoiceSweep):
        raise UserError("this kind of sweep can't be searched; list what it may be: choice(a, b)")
    _refuse_tags(value.tags)
    parser = OverridesParser.create()
    texts = list(override.sweep_string_iterator())
    values = [parser.parse_override(f"key={text}").value() for text in texts]
    plain = all(isinstance(each, PLAIN) for each in values) and len(set(values)) == len(values)  # 1 equals true
    by_value = dict(zip(values if plain else texts, texts, strict=True))
    return CategoricalDistribution(list(by_value)), by_value


def _refuse_tags(tags: Set[str]) -> None:
    if tags:
        raise UserError(f"tag({listed(sorted(tags))}, ...) is for intervals; leave it out")


def _interval(value: IntervalSweep) -> BaseDistribution:
    low, high, log = value.start, value.end, "log" in value.tags
    assert low is not None
    assert high is not None
    if low > high:
        raise UserError(f"the interval is upside down; write interval({high},{low})")
    if log and low <= 0:
        raise UserError("a logarithm needs numbers above 0; start above it, or leave out tag(log, ...)")
    if unknown := sorted(set(value.tags) - {"log"}):
        raise UserError(f"there is no tag {listed(unknown)}; tag(log, ...) searches by the logarithm")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _steps(values: Sequence[float], value: RangeSweep) -> BaseDistribution:
    if not values:
        raise UserError("the range is empty; its end is left out")
    low, high = min(values), max(values)
    step = abs(value.step)
    if all(isinstance(each, int) for each in values):
        return IntDistribution(int(low), int(high), step=int(step))
    return FloatDistribution(float(low), float(high), step=float(step))


def _suggested(trial: Any, parameter: Parameter) -> Any:
    found = parameter.distribution
    if isinstance(found, CategoricalDistribution):
        return trial.suggest_categorical(parameter.name, found.choices)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(parameter.name, found.low, found.high, step=found.step, log=found.log)
    assert isinstance(found, FloatDistribution)
    return trial.suggest_float(parameter.name, found.low, found.high, step=found.step, log=found.log)


def _described(parameter: Parameter) -> str:
    found = parameter.distribution
    if isinstance(found, CategoricalDistribution):
        return f"choice({','.join(parameter.texts.values())})"
    assert isinstance(found, IntDistribution | FloatDistribution)
    text = f"interval({found.low},{found.high})"
    if isinstance(found, IntDistribution):
        text = f"int({text})"
    if found.step not in (None, 1):
        text += f" in steps of {found.step}"
    return f"tag(log,{text})" if found.log else text


def _swept(parameter: Parameter) -> str:
    found = parameter.distribution
    if isinstance(found, CategoricalDistribution):
        return ",".join(parameter.texts.values())
    assert isinstance(found, IntDistribution | FloatDistribution)
    return f"choice({found.low!r},{found.high!r})"
