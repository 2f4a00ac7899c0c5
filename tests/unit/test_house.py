"""The rooms of the house: what only one of them may know, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vl_borg_hooks

PACKAGE = Path(vl_borg_hooks.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
HOSTS = {"Host", "LocalHost", "SshHost"}


def names(node: ast.AST) -> set[str]:
    """Every name and attribute in `node`, of which a class may be one."""
    return {
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def kinds_asked_for(source: str) -> Iterator[str]:
    """Each expression in `source` that asks which kind of host a host is."""
    for node in ast.walk(ast.parse(source)):
        asks = isinstance(node, ast.Compare | ast.MatchClass) or (
            isinstance(node, ast.Call)
            and names(node.func) & {"isinstance", "issubclass", "type", "hasattr"}
        )
        if asks and names(node) & HOSTS:
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "question",
    [
        "isinstance(host, SshHost)",
        "isinstance(target.host, (str, hosts.LocalHost))",
        "host == LocalHost()",
        "type(host) is ssh.SshHost",
    ],
)
def test_a_question_for_the_kind_of_host_is_found(question: str) -> None:
    assert question in list(kinds_asked_for(f"if {question}:\n    pass"))


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("system/")])
def test_only_system_knows_which_kind_of_host_a_host_is(module: str) -> None:
    assert list(kinds_asked_for(MODULES[module].read_text())) == []


@pytest.mark.parametrize("module", MODULES)
def test_one_module_runs_commands_and_one_starts_processes(module: str) -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    own = {"system/commands.py": {"sh"}, "system/processes.py": {"subprocess"}}
    assert imported & {"subprocess", "sh"} == own.get(module, set())
