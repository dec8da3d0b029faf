"""Schemas of JSON and TOML files: what they allow, and the first fault in words."""

from __future__ import annotations

from typing import Any

import pytest

from tilecompile.runtime.validate import MAX_INT, TOML, Choice, MapOf, Number, Table, mismatch

INF, NAN = float("inf"), float("nan")
ALLOWED: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [0, MAX_INT], [-1, MAX_INT + 1, True, 1.0, "1", None]),
    (float, [0, -2, 1.5, NAN], [True, "1", None]),
    (str, ["", "a"], [1, None]),
    (dict, [{}, {"a": 1}], [[], None]),
    (None, [None], [0, "", []]),
    (Number(), [0, 2.5, 10**18], [-1, 10**18 + 1, NAN, INF, True, "1"]),
    (Number(1, whole=True), [1, 7], [0, 1.0, 2.5]),
    (Number(above=True), [1e-9, 3], [0, -1]),
    (Choice(("a", "b")), ["a", "b"], ["c", "", 1]),
    ([int], [[], [1], [1, 2]], [[1, "2"], (1,), {}, None]),
    ([int, str], [[1, "a"]], [[], [1], [1, "a", 2], ["a", 1]]),
    ((int, None), [1, None], ["a", -1]),
    (({"a": int}, {"b": int}), [{"a": 1}, {"b": 1}], [{}, {"a": "x"}]),
    ({"a": int}, [{"a": 1}, {"a": 1, "more": []}], [{}, {"b": 1}, {"a": "1"}, []]),
    (MapOf(int), [{}, {"a": 1, "b": 2}], [{"a": "1"}, []]),
    (MapOf(int, ("a", "b")), [{}, {"a": 1}], [{"c": 1}]),
    (Table({"a": int, "b": int}, ("a",)), [{"a": 1}, {"a": 1, "b": 2}], [{}, {"b": 1}, {"a": 1, "c": 2}, {"a": "1"}]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), ALLOWED)
def test_what_a_schema_allows(schema: Any, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert mismatch(value, schema) is None, value
        assert mismatch([value], [schema]) is None, value
    for value in wrong:
        found = mismatch(value, schema)
        assert found, value
        assert "\n" not in found


JSON_WORDS: list[tuple[Any, Any, str]] = [
    (3, {"a": int}, "the content is 3, want an object with a"),
    ({"a": {}}, {"a": {"b": str}}, "a.b is missing, want a string"),
    ({"a": {"b": [1, "2"]}}, {"a": {"b": [int]}}, 'a.b[1] is "2", want a whole number from 0'),
    ({"a": {"x y": None}}, {"a": MapOf(float)}, 'a["x y"] is null, want a number'),
    ({"a": 1}, {"a": (str, None)}, "a is 1, want a string or null"),
    ({"a": 1}, {"a": [str]}, "a is 1, want a list, each a string"),
    ({"a": "x" * 100}, {"a": int}, 'a is "' + "x" * 79 + ", want a whole number from 0"),
    ({"a": True}, {"a": dict}, "a is true, want an object"),
]


@pytest.mark.parametrize(("value", "schema", "words"), JSON_WORDS)
def test_first_fault_in_a_json_file(value: Any, schema: Any, words: str) -> None:
    assert mismatch(value, schema) == words


TOML_WORDS: list[tuple[Any, Any, str]] = [
    ({"a": 1}, Table({"a": MapOf(str)}), "a is 1, want a table"),
    ({"a": {"x-y": 1}}, Table({"a": MapOf(str)}), "a.x-y is 1, want a string"),
    ({"a": {"x\ny": 1}}, Table({"a": MapOf(str)}), "a.'x\\ny' is 1, want a string"),
    ({"a": {"c": 1, "d": 1}}, {"a": Table({"b": int})}, "unknown key a.c, a.d; keys are: b"),
    ({"a": {"c": 1}}, {"a": MapOf(int, ("b",))}, "unknown key a.c; keys are: b"),
    ({"a": {"b": 1}}, {"a": Table({"b": int, "c": int, "d": int}, ("b", "c", "d"))}, "missing key a.c, a.d"),
    ({"a": False}, Table({"a": Number(1, whole=True)}), "a is False, want a whole number from 1 to 1e+18"),
    ({"a": 0}, Table({"a": Number(above=True)}), "a is 0, want a number above 0, up to 1e+18"),
    ({"a": "x" * 99}, Table({"a": Choice(("p", "q"))}), "a is '" + "x" * 59 + "…, want one of: p, q"),
    ({"a": [1]}, Table({"a": [int, str]}), "a is [1], want a list of 2: a whole number from 0; a string"),
]


@pytest.mark.parametrize(("value", "schema", "words"), TOML_WORDS)
def test_first_fault_in_a_toml_file(value: Any, schema: Any, words: str) -> None:
    assert mismatch(value, schema, notation=TOML) == words


def test_path_of_the_value_itself() -> None:
    assert mismatch({"rows": [-1]}, {"rows": [int]}, "reads") == "reads.rows[0] is -1, want a whole number from 0"
    assert mismatch([], {"rows": [int]}, "reads") == "reads is [], want an object with rows"
