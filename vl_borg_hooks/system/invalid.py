"""What pydantic finds wrong with data that somebody wrote, in plain words."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from vl_borg_hooks.system.yaml import Location

# The kinds of problems that pydantic knows, by the beginning of their name.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes if it is",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a number that is not infinite",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "too_short": "must have at least {min_length} in it",
    "too_long": "must have at most {max_length} in it",
    "dict_type": "must have keys of its own, each with a value",
    "model": "must have keys of its own: {keys}",
    "path_type": "must be a path",
    "literal_error": "must be one of: {expected}",
    "enum": "must be one of: {expected}",
}


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Yield where `error`, of a validation as `model`, has found something, and what, in plain words."""
    for problem in error.errors():
        yield problem["loc"], _explain(problem, model)


def _explain(problem: Any, model: type[BaseModel]) -> str:
    kind, location = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        known = list(_model_at(model, location[:-1]).model_fields)
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0)
        return f"unknown key; the nearest valid key is {nearest[0]}"
    if kind in ("value_error", "assertion_error"):
        # What a validator of ours or of a plugin has raised.
        return str(problem.get("ctx", {}).get("error", "is wrong")) or "is wrong"
    words = next((said for start, said in _WORDS.items() if kind.startswith(start)), "")
    if not words:
        # Of a plugin's model: there are a hundred kinds.
        return re.sub(r"^\w+ should ", "must ", problem["msg"]).replace("valid ", "")
    # As it is written in YAML and not in Python.
    expected = (
        str(problem.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ")
    )
    keys = ", ".join(_model_at(model, location).model_fields)
    return words.format_map({**problem.get("ctx", {}), "expected": expected, "keys": keys})


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """Return the model of what is at `location` of `model`, or the last one on the way to it."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = next(_models(field.annotation), None) if field else None
        model = inner or model
    return model


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models in a type such as `list[Model] | None`."""
    arguments = typing.get_args(annotation)
    # In Python 3.10, list[int] says that it is a type, and issubclass refuses it.
    if not arguments and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in arguments:
        yield from _models(inner)
