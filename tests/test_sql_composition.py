"""No text is glued into a statement: names and values go through `psycopg.sql` or as parameters.

ruff's S608 looks for glue that reads like SQL; this follows whatever reaches the server. A
call's name tells that it is one that executes (or makes an `SQL` of) its argument, and so is a
function of ours that hands a parameter on to one.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

import dagster_tools

SOURCE = Path(dagster_tools.__file__).parent

Executing: TypeAlias = dict[str, tuple[int, str]]
"""What runs one of its arguments, or lets it stand in a statement: that one's place and name."""

EXECUTING: Executing = {
    "execute": (0, "query"),
    "executemany": (0, "query"),
    "stream": (0, "query"),
    "copy": (0, "statement"),
    "set_sql_query": (0, "query"),
    "SQL": (0, "obj"),
}

RENDERED = {"as_sql": {"str(self)", "self.text"}}
"""Where text that is no literal becomes SQL on purpose: functions, and the expressions there.

A type's name, which the grammar let through, and a user's own statement, which an SQL output
runs by design.
"""


def test_no_glued_text_is_executed():
    modules = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    executing = EXECUTING | _handing_on(modules.values())

    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path, module in modules.items()
        for line, text in _glued(module, executing)
    ]

    assert found == []


def test_statements_are_found_at_all():
    """Guards the test above against looking at nothing, after a change of names or layout."""
    modules = [ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")]
    calls = [name for module in modules for _call, name, _text in _calls(module, EXECUTING)]

    assert calls.count("execute") > 20
    assert calls.count("SQL") > 50
    assert "set_sql_query" in calls


def test_no_warning_of_glued_sql_is_silenced():
    silenced = [
        path.name
        for path in SOURCE.rglob("*.py")
        if re.search(r"noqa.*(S608|\bS\b)|ruff: noqa(?!:)", path.read_text("utf-8"))
    ]

    assert silenced == []


def test_no_sql_file_has_a_placeholder_in_a_comment():
    """A name that is put there and holds a newline would end the comment."""
    commented = [
        line
        for path in SOURCE.rglob("*.sql")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"--.*\{", line)
    ]

    assert commented == []


@pytest.mark.parametrize(
    "statement",
    [
        """connection.execute(f"DROP TABLE {name}")""",
        """self.connection.execute(f"DROP TABLE {name}")""",
        """connection.execute("DROP TABLE " + name)""",
        """connection.execute("DROP TABLE %s" % name)""",
        """connection.execute("DROP TABLE {}".format(name))""",
        """connection.execute(" ".join(["DROP TABLE", name]))""",
        """connection.execute("DROP TABLE t".replace("t", name))""",
        """connection.execute(query=f"DROP TABLE {name}")""",
        """connection.execute(str(name))""",
        """connection.execute(name if name else "SELECT")""",
        """cursor.copy(f"COPY {name} FROM STDIN")""",
        """reading.set_sql_query(f"SELECT {name}")""",
        """sql.SQL(f"DROP TABLE {name}").format()""",
        """sql.SQL(name)""",
        """_run(f"DROP TABLE {name}")""",
        """
        statement = f"DROP TABLE {name}"
        connection.execute(statement)
        """,
        """
        statement = "DROP TABLE "
        statement += name
        connection.execute(statement)
        """,
        """
        statement = "DROP TABLE {}"
        connection.execute(statement.format(name))
        """,
        """
        for statement in [f"DROP TABLE {name}"]:
            connection.execute(statement)
        """,
    ],
)
def test_glue_of_each_kind_is_found(statement):
    assert list(_glued_in(statement))


@pytest.mark.parametrize(
    "statement",
    [
        """connection.execute("SELECT $1", [name])""",
        """connection.execute(sql.SQL("DROP TABLE {}").format(Identifier(name)))""",
        """connection.execute(compose_drop(name))""",
        """reading.set_sql_query(compose_select(name).as_string())""",
        """sql.SQL("UNIQUE" if name else "PRIMARY KEY")""",
        """sql.SQL(", ").join(map(Identifier, name))""",
        """
        statement = sql.SQL("SELECT 1")
        statement += sql.SQL(" WHERE {}").format(Identifier(name))
        connection.execute(statement)
        """,
    ],
)
def test_composed_statements_pass(statement):
    assert list(_glued_in(statement)) == []


def _glued_in(statement: str) -> Iterator[tuple[int, str]]:
    body = textwrap.indent(textwrap.dedent(statement).strip(), "    ")
    module = ast.parse(
        f"def _run(text):\n    connection.execute(text)\n\ndef using(name: str):\n{body}\n"
    )
    yield from _glued(module, EXECUTING | _handing_on([module]))


# --- what reaches the server ----------------------------------------------------------------


def _glued(module: ast.Module, executing: Executing) -> Iterator[tuple[int, str]]:
    for scope in _scopes(module):
        for call, _name, text in _calls(scope, executing):
            rendered = RENDERED.get(scope.name, ()) if isinstance(scope, ast.FunctionDef) else ()
            if ast.unparse(text) in rendered:
                continue
            if not _composed(text, scope, module):
                yield call.lineno, ast.unparse(text)


def _scopes(node: ast.Module | ast.ClassDef) -> Iterator[ast.AST]:
    """Yield functions with what is nested in them, and the statements around functions."""
    for statement in node.body:
        if isinstance(statement, ast.ClassDef):
            yield from _scopes(statement)
        else:
            yield statement


def _calls(scope: ast.AST, executing: Executing) -> Iterator[tuple[ast.Call, str, ast.expr]]:
    """Yield calls that execute something, with the argument that says what."""
    for call in ast.walk(scope):
        if not isinstance(call, ast.Call):
            continue
        name = _name(call.func)
        own = name in EXECUTING and ast.unparse(call.func) == f"self.{name}"  # Loader.copy
        if name not in executing or own:
            continue
        position, parameter = executing[name]
        named = [keyword.value for keyword in call.keywords if keyword.arg == parameter]
        if named or len(call.args) > position:
            yield call, name, (named or call.args[position:])[0]


def _handing_on(modules: Iterable[ast.Module]) -> Executing:
    """Return private functions that execute one of their parameters."""
    handing: Executing = {}
    for module in modules:
        for function in ast.walk(module):
            if not isinstance(function, ast.FunctionDef) or not function.name.startswith("_"):
                continue  # callers of what is public may stand elsewhere
            parameters = list(_annotations(function))
            for _call, _executing, text in _calls(function, EXECUTING):
                name = ast.unparse(text)
                if name in parameters and not _is_composable(_annotations(function)[name]):
                    handing[function.name] = parameters.index(name), name
    return handing


# --- what is composed -----------------------------------------------------------------------


def _composed(text: ast.expr, scope: ast.AST, module: ast.Module) -> bool:
    """Whether the text is a literal, was composed by `psycopg.sql`, or stands in a .sql file."""
    match text:
        case ast.Constant():
            return True
        case ast.IfExp():
            return _composed(text.body, scope, module) and _composed(text.orelse, scope, module)
        case ast.BinOp():
            return False
        case ast.List() | ast.Tuple():
            return all(_composed(element, scope, module) for element in text.elts)
        case ast.Call():
            return _composed_by_call(text, scope, module)
        case ast.Name():
            return _composed_before(text.id, scope, module)
        case ast.Attribute(attr=attribute):
            return attribute in RENDERED
        case _:
            return False


def _composed_by_call(call: ast.Call, scope: ast.AST, module: ast.Module) -> bool:
    name = _name(call.func)
    if name.startswith("compose_") or name in {"SQL", "read_text"}:
        return True
    if name not in {"format", "join", "as_string"} or not isinstance(call.func, ast.Attribute):
        return False
    # Of an SQL these compose; of a str, even one that stands in the source, they glue.
    receiver = call.func.value
    if isinstance(receiver, ast.Call):
        return _composed_by_call(receiver, scope, module)
    return isinstance(receiver, ast.Name) and _composed_before(
        receiver.id, scope, module, text=False
    )


def _composed_before(name: str, scope: ast.AST, module: ast.Module, *, text: bool = True) -> bool:
    """Whether all that the name stands for is composed: as a parameter, by its type."""
    if isinstance(scope, ast.FunctionDef) and name in (annotated := _annotations(scope)):
        # Callers of a function that executes text are looked at instead.
        return _is_composable(annotated[name]) or (text and scope.name in _handing_on([module]))
    values = [value for node in (scope, module) for value in _assigned(name, node)]
    return bool(values) and all(
        _composed(value, scope, module) and (text or not isinstance(value, ast.Constant))
        for value in values
    )


def _assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if (
                found == name
            ):
                yield value
            case ast.AugAssign(target=ast.Name(id=found), value=value) if found == name:
                yield value
            case ast.For(target=ast.Name(id=found), iter=iterable) if found == name:
                yield iterable


def _name(function: ast.expr) -> str:
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))


def _annotations(function: ast.FunctionDef) -> dict[str, str]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {
        argument.arg: ast.unparse(argument.annotation) if argument.annotation else ""
        for argument in arguments
        if argument.arg != "self"
    }


def _is_composable(annotation: str) -> bool:
    return bool(re.fullmatch(r"(Sequence\[)?(sql\.)?(SQL|Composed|Composable)\]?", annotation))
