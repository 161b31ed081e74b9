"""Arguments of a config against the signature of the function that takes them."""

import pytest

from kdjax.arguments import check_arguments, hashable, resolve_arguments, select_arguments, signature_of
from kdjax.errors import UserError


def own(data, *rest, rate: float, depth: int = 3, share=0.5, flag: bool = True):
    return data, rest, rate, depth, share, flag


def typed(*, count: int | None = None, name: str = "", widths: tuple[int, ...] = (), start: int = 0.5, other: dict = 3):
    return count, name, widths, start, other


def open_ended(data, *, rate=1.0, **others):
    return data, rate, others


TAKES = signature_of(own, leading=1)
WHERE = {"field": "config.x", "owner": "the thing 'own'"}


def test_a_signature_has_what_is_passed_by_name():
    assert tuple(TAKES.parameters) == ("rate", "depth", "share", "flag") and not TAKES.takes_any
    assert TAKES.required == ("rate",) and TAKES.positional == ()
    assert tuple(signature_of(own, skip=("data", "rate")).parameters) == ("depth", "share", "flag")
    assert signature_of(own).positional == ("data",)


def test_defaults_are_filled_in_and_floats_are_floats():
    resolved = resolve_arguments(TAKES, {"rate": 1, "share": 2, "depth": 4}, **WHERE)
    assert resolved == {"rate": 1.0, "depth": 4, "share": 2.0, "flag": True}
    assert isinstance(resolved["rate"], float) and isinstance(resolved["share"], float)
    assert isinstance(resolved["depth"], int) and resolved["flag"] is True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 1.0, "deth": 2}, r"^config\.x: the thing 'own' takes no 'deth'\. Did you mean 'depth'\?$"),
        ({"rate": 1.0, "ordr": 2}, r"takes no 'ordr'\. Did you mean 'order'\?$"),
        ({"rate": 1.0, "data": 2}, "takes no 'data'"),
        ({"depth": 2}, r"^config\.x: the thing 'own' needs 'rate'; set it, as by --config\.x\.rate=VALUE"),
    ],
)
def test_unknown_and_missing_arguments_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_arguments(TAKES, given, **WHERE, also=("order",))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rate": "fast"}, "rate must be a number, not 'fast'"),
        ({"rate": True}, "rate must be a number, not True"),
        ({"rate": 1, "depth": 2.0}, "depth must be an integer, not 2.0"),
        ({"rate": 1, "flag": 1}, "flag must be True or False, not 1"),
    ],
)
def test_values_of_another_type_than_the_annotation_are_refused(given, words):
    with pytest.raises(UserError, match=f"^config.x.{words}"):
        resolve_arguments(TAKES, given, **WHERE)


def test_unions_and_sequences_are_compared_and_what_the_default_contradicts_is_not():
    takes = signature_of(typed)
    for given in ({"count": None}, {"count": 2}, {"widths": [1, 2]}, {"start": 0.7}, {"other": 4}):
        check_arguments(takes, given, **WHERE)
    for given, words in (({"count": 2.5}, "count must be an integer or None"), ({"name": 3}, "name must be a text")):
        with pytest.raises(UserError, match=words):
            check_arguments(takes, given, **WHERE)
    for widths in (3, "abc", (1, "a")):
        with pytest.raises(UserError, match="widths must be a list whose items are each an integer"):
            check_arguments(takes, {"widths": widths}, **WHERE)


def test_a_function_with_keyword_arguments_takes_any():
    takes = signature_of(open_ended, leading=1)
    assert resolve_arguments(takes, {"colour": "red"}, **WHERE) == {"rate": 1.0, "colour": "red"}
    assert select_arguments(takes, {"colour": "red", "rate": 2.0}) == {"rate": 2.0}


def test_a_callable_without_a_hash_gets_one():
    class Loss:
        __hash__ = None

        def __call__(self, logits, *, power: float = 1.0):
            return logits * power

    assert hashable(own) is own
    loss = hashable(Loss())
    assert isinstance(hash(loss), int) and loss(2.0) == 2.0
    assert tuple(signature_of(loss).parameters) == ("logits", "power")
