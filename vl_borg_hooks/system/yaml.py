"""YAML as plain data, with the line of each key, and an end for whatever is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# The keys and the indexes on the way to something, and the line of each.
Location: TypeAlias = tuple[str | int, ...]
Lines: TypeAlias = dict[Location, int]

# An alias costs some bytes and can stand for any number of values: ten of ten of ten have no end.
MOST_VALUES = 20_000


class YamlError(Exception):
    """What is wrong with a text as YAML; `line` is None if that is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse(text: str) -> tuple[object, Lines]:
    """Return the plain data of YAML `text` and the line of each key in it; raises YamlError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    # ruamel.yaml takes seconds to find out that as many are too deep.
    if text.count("[") + text.count("{") > MOST_VALUES:
        raise YamlError(f"it has more than {MOST_VALUES} values")
    try:
        tree = YAML(typ="rt", pure=True).load(text)
        lines: Lines = {}
        return _Plain(lines).of(tree, ()), lines
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlError(str(error.problem), mark.line + 1 if mark else None) from None
    except YamlError:
        raise
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - ruamel.yaml raises any for a misplaced tag
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise YamlError(reason) from None


class _Plain:
    """Makes plain data of ruamel's, and notes the line of each key in `lines`."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._count = 0

    def of(self, node: Any, location: Location) -> object:
        """Return `node` as plain dicts, lists and scalars; raises YamlError for too many of them."""
        self._count += 1
        if self._count > MOST_VALUES:
            raise YamlError(f"with its aliases, it has more than {MOST_VALUES} values")
        if isinstance(node, Mapping):
            plain: dict[object, object] = {}
            for key, value in node.items():
                here = (*location, str(key))
                self._note(node, key, here)
                plain[str(key)] = self.of(value, here)
            return plain
        if isinstance(node, list):
            items: list[object] = []
            for index, value in enumerate(node):
                here = (*location, index)
                self._note(node, index, here)
                items.append(self.of(value, here))
            return items
        for scalar in (bool, int, float, str):
            if isinstance(node, scalar):
                return scalar(node)
        return node

    def _note(self, node: Any, key: Any, here: Location) -> None:
        position = node.lc.data.get(key) if hasattr(node, "lc") and node.lc.data else None
        if position:
            self._lines[here] = position[0] + 1
