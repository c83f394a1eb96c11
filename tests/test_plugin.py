from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from annotated_types import Interval
from hypothesis import given, settings
from hypothesis import strategies as st

from idaa_lightly import FGSM, AdversarialLoss, PixelSpace, ViewGenerator, registry
from idaa_lightly.errors import PluginError, UsageError
from idaa_lightly.options import Option, options_of, parse_options
from idaa_lightly.plugin import Augmentation, GeneratorAugmentation

BUILT_IN = [(kind, e.name) for kind in ("method", "augmentation") for e in registry.entries(kind)]


class Mine(GeneratorAugmentation):
    """Augmentation with an option of every type.

    Args:
        flag: A flag.
        mode: Manner, in words
            that go on: here.
        level: A choice of numbers.
        count: Number of things.
        rate: A number.
        limit: A number, or None.
        label: Name of it.

    Attributes:
        rest: Not an option.
    """

    def __init__(
        self,
        *,
        flag: bool = False,
        mode: Literal["soft", "hard"] = "soft",
        level: Literal[1, 2] = 1,
        count: int = 3,
        rate: float = 0.5,
        limit: int | None = None,
        label: str = "x",
        size: int | float = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.given = {"flag": flag, "mode": mode, "level": level, "count": count, "rate": rate, "limit": limit}

    def generator(self) -> ViewGenerator:
        return ViewGenerator(PixelSpace(), FGSM(0.1))


class Child(Mine):
    """Subclass that changes a default and adds an option.

    Args:
        extra: An additional option.
    """

    def __init__(self, *, extra: str | None = None, count: float = 7.5, **options: Any) -> None:
        super().__init__(count=int(count), **options)


class Grandchild(Child):
    """Subclass that changes nothing."""


class Closed(Mine):
    """Subclass that takes no options from its base."""

    def __init__(self, positional: int = 0, *, only: int = 1) -> None:
        super().__init__()


class Optionless(Augmentation):
    """Augmentation without a constructor."""

    def loss(self, method):
        raise NotImplementedError


OWN = ["flag", "mode", "level", "count", "rate", "limit", "label", "size"]


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (Mine, [*OWN, "weight", "random", "place"]),
        (Child, ["extra", "count", *(name for name in OWN if name != "count"), "weight", "random", "place"]),
        (Grandchild, list(options_of(Child))),
        (Closed, ["only"]),
        (Optionless, []),
        (GeneratorAugmentation, ["weight", "random", "mode", "place"]),
    ],
)
def test_options_and_their_order(plugin, expected):
    assert list(options_of(plugin)) == expected


def test_an_own_option_goes_before_the_bases():
    mine, child = options_of(Mine)["count"], options_of(Child)["count"]
    assert (mine.type_name, mine.default, mine.help) == ("int", 3, "Number of things.")
    assert (child.type_name, child.default, child.help) == ("float", 7.5, "Number of things.")  # The base describes it.


def test_random_has_idaas_options():
    random, idaa = (options_of(registry.load("augmentation", name)) for name in ("random", "idaa"))
    assert {name: option for name, option in random.items() if name != "random"} == {
        name: option for name, option in idaa.items() if name != "random"
    }
    assert (random["random"].default, idaa["random"].default) == (True, False)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_built_in_options_are_typed_described_and_default_to_the_signature(kind, name):
    plugin = registry.load(kind, name)
    defaults = {}
    for cls in reversed(plugin.__mro__):
        if "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            defaults |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options = options_of(plugin)
    assert {option.name: option.default for option in options.values()} == {n: defaults[n] for n in options}
    assert parse_options(plugin, name, {}) == {n: defaults[n] for n in options}
    for option in options.values():
        assert option.help.endswith("."), option.name
        assert option.default is not inspect.Parameter.empty
        assert option.parse(option.default) == option.parse(str(option.default)) == option.default
    if kind == "augmentation":
        plugin(**parse_options(plugin, name, {}))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        *(("flag", given, True) for given in (True, "true", "True", " TRUE ")),
        *(("flag", given, False) for given in (False, "false", "False")),
        ("mode", "hard", "hard"),
        ("mode", " soft ", "soft"),
        ("level", "2", 2),
        ("level", 2, 2),
        ("count", "12", 12),
        ("count", -3, -3),
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("limit", "4", 4),
        *(("limit", given, None) for given in ("none", "None", "", None)),
        ("label", "none", "none"),
        ("label", 5, "5"),
        ("label", " a b=c ", "a b=c"),
        ("size", "3", 3),
        ("size", "3.5", 3.5),
    ],
)
def test_parse(name, given, expected):
    parsed = parse_options(Mine, "mine", {name: given})[name]
    assert (parsed, type(parsed)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("flag", "1", "flag is '1', but expected bool"),
        ("flag", "", "flag is '', but expected bool"),
        ("mode", "Hard", "mode is 'Hard', but expected soft or hard"),
        ("level", "3", "level is '3', but expected 1 or 2"),
        ("count", "1.5", "count is '1.5', but expected int"),
        ("count", 1.0, "count is '1.0', but expected int"),
        ("count", True, "count is 'True', but expected int"),
        ("count", "none", "count is 'none', but expected int"),
        ("count", [1], "count is '[1]', but expected int"),
        ("rate", "0,1", "rate is '0,1', but expected float"),
        ("limit", "x", "limit is 'x', but expected int | None"),
        ("size", "x", "size is 'x', but expected int | float"),
        (
            "weihgt",
            1,
            f"'mine' has no option 'weihgt'; it has: {', '.join(OWN)}, weight, random, place. Did you mean 'weight'?",
        ),
        ("zzz", 1, f"'mine' has no option 'zzz'; it has: {', '.join(OWN)}, weight, random, place."),
        ("options", 1, f"'mine' has no option 'options'; it has: {', '.join(OWN)}, weight, random, place."),
        ("self", 1, f"'mine' has no option 'self'; it has: {', '.join(OWN)}, weight, random, place."),
    ],
)
def test_parse_errors(name, given, text):
    with pytest.raises(UsageError) as caught:
        parse_options(Mine, "mine", {name: given})
    assert str(caught.value) == text


def test_no_options_at_all():
    with pytest.raises(UsageError) as caught:
        parse_options(Optionless, "bare", {"eps": 1})
    assert str(caught.value) == "'bare' has no option 'eps'; it has: none."


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "flag": st.booleans(),
            "mode": st.sampled_from(["soft", "hard"]),
            "level": st.sampled_from([1, 2]),
            "count": st.integers(),
            "rate": st.floats(allow_nan=False, allow_infinity=False),
            "limit": st.none() | st.integers(),
            "label": st.text().map(str.strip),
            "weight": st.floats(0, 10),
        },
    )
)
def test_values_survive_as_they_are_and_as_text(values):
    parsed = parse_options(Mine, "mine", values)
    assert parsed == parse_options(Mine, "mine", {name: str(value) for name, value in values.items()})
    assert parsed == {name: option.default for name, option in options_of(Mine).items()} | values
    assert Mine(**parsed).given.items() <= parsed.items()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, ["int"]),
        (Literal["a", "b"], ["a or b"]),
        (Annotated[float, Interval(gt=0, le=0.5)], ["above 0 to 0.5"]),
        (Annotated[float, Interval(ge=0, lt=0.5)], ["0 to below 0.5"]),
        (Annotated[float, Interval(gt=0, lt=0.5)], ["between 0 and 0.5"]),
        (float | None, ["float | None"]),
        (Optional[float], ["float", "None"]),  # noqa: UP045
        (Union[int, str], ["int", "str"]),  # noqa: UP007
        (Literal["a", "b"] | None, ["a", "b", "None"]),
    ],
)
def test_type_names(annotation, words):
    name = Option("x", annotation, None, "").type_name
    assert all(word in name for word in words), name


@pytest.mark.parametrize("annotation", [float | None, Optional[float]])  # noqa: UP045
def test_both_spellings_of_optional_parse(annotation):
    option = Option("x", annotation, None, "")
    assert (option.parse("0.5"), option.parse("None")) == (0.5, None)


def test_help_is_the_docstrings():
    helps = {name: option.help for name, option in options_of(Mine).items()}
    assert helps["mode"] == "Manner, in words that go on: here."
    assert helps["label"] == "Name of it."
    assert helps["size"] == ""  # It has no description.
    assert helps["weight"] == "Weight of the adversarial term."


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weight_out_of_range(weight):
    with pytest.raises(UsageError, match=rf"^weight is {weight}, but expected (a finite number: )?float, 0 or more$"):
        Mine(weight=weight)


def test_a_generator_augmentation_is_an_adversarial_loss():
    method = registry.load("method", "simclr").__new__(registry.load("method", "simclr"))
    method.loss = lambda a, b: (a - b).square().mean()
    loss = Mine(weight=0.5).loss(method)
    assert isinstance(loss, AdversarialLoss)
    assert (loss.weight, loss.criterion) == (0.5, method.loss)


def test_an_option_needs_a_type_and_a_default() -> None:
    class Untyped:
        def __init__(self, *, eps=0.1) -> None: ...

    class Required:
        def __init__(self, *, eps: float) -> None: ...

    for plugin in (Untyped, Required):
        with pytest.raises(PluginError, match=r"option 'eps' of .*(Untyped|Required) needs a type and a default"):
            options_of(plugin)
