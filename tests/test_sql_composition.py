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

RENDERED = {"as_sql": {"plain._unqualified", "self.text"}}
"""Where text that is no literal becomes SQL on purpose: functions, and the expressions there.

A type's name, which the grammar let through, and a user's own statement, which an SQL output
runs by design.
"""


def test_no_glued_text_is_executed():
    modules = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    reader = _Reader(modules.values())

    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path, module in modules.items()
        for line, text in reader.glued(module)
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
        """connection.execute(glue(name))""",
        """connection.execute(name.text)""",
        """connection.execute(sql.SQL("DROP TABLE ") + name)""",
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
    assert _glued_in(statement)


@pytest.mark.parametrize(
    "statement",
    [
        """connection.execute("SELECT $1", [name])""",
        """connection.execute(sql.SQL("DROP TABLE {}").format(Identifier(name)))""",
        """connection.execute(compose_drop(name))""",
        """connection.execute(compose_drop(name) + sql.SQL(" CASCADE"))""",
        """connection.execute(name.compose_drop)""",
        """sql.SQL(mode)""",
        """reading.set_sql_query(compose_drop(name).as_string())""",
        """connection.execute(CONSTANT)""",
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
    assert _glued_in(statement) == []


def _glued_in(statement: str) -> list[tuple[int, str]]:
    body = textwrap.indent(textwrap.dedent(statement).strip(), "    ")
    module = ast.parse(f"{HELPERS}\ndef using(name: str, mode: Literal['a', 'b']):\n{body}\n")
    return list(_Reader([module]).glued(module))


HELPERS = """
CONSTANT = "SELECT 1"

def _run(text):
    connection.execute(text)

def compose_drop(name) -> Composed: ...

def glue(name) -> str: ...
"""


# --- what reaches the server ----------------------------------------------------------------


class _Reader:
    """Follows text to the server, through the functions of several modules."""

    def __init__(self, modules: Iterable[ast.Module]) -> None:
        functions = [
            node for each in modules for node in ast.walk(each) if isinstance(node, ast.FunctionDef)
        ]
        self.constants: dict[str, list[ast.expr]] = {}
        self.composing = {f.name for f in functions if f.returns and _is_composable(f.returns)}
        # Callers of what is private are looked at; those of what is public may stand elsewhere.
        self.handing_on = {
            function.name: found
            for function in functions
            if function.name.startswith("_") and (found := _handed_on(function))
        }

    def glued(self, module: ast.Module) -> Iterator[tuple[int, str]]:
        """Yield line and expression wherever text that was not composed is executed."""
        executing = EXECUTING | self.handing_on
        self.constants = {
            node.targets[0].id: [node.value]
            for node in module.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for scope in _scopes(module):
            rendered = RENDERED.get(scope.name, ()) if isinstance(scope, ast.FunctionDef) else ()
            for call, _executing, text in _calls(scope, executing):
                if ast.unparse(text) not in rendered and not self.composed(text, scope):
                    yield call.lineno, ast.unparse(text)

    def composed(self, node: ast.expr, scope: ast.AST, *, text: bool = True) -> bool:
        """Whether a statement is a literal, or was composed by `psycopg.sql`.

        Args:
            text: A literal will do; not where something is added to it or put into it.
        """
        match node:
            case ast.Constant():
                return text
            case ast.IfExp(body=body, orelse=orelse):
                return self.composed(body, scope) and self.composed(orelse, scope)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return all(self.composed(side, scope, text=False) for side in (left, right))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return all(self.composed(item, scope) for item in items)
            case ast.Attribute(attr=name):
                return name in self.composing
            case ast.Call():
                return self._composed_by_call(node, scope)
            case ast.Name(id=name):
                return self._composed_before(name, scope, text=text)
            case _:
                return False

    def _composed_by_call(self, call: ast.Call, scope: ast.AST) -> bool:
        name = _name(call.func)
        if name in self.composing | {"SQL", "read_text"}:
            return True
        # Of an SQL these compose; of a str, even one that stands in the source, they glue.
        composes = name in {"format", "join", "as_string"} and isinstance(call.func, ast.Attribute)
        return composes and self.composed(call.func.value, scope, text=False)  # type: ignore[attr-defined]  # an Attribute

    def _composed_before(self, name: str, scope: ast.AST, *, text: bool) -> bool:
        """Whether all that the name stands for is composed: as a parameter, by its type."""
        if isinstance(scope, ast.FunctionDef) and name in (annotated := _annotations(scope)):
            annotation = annotated[name]
            if annotation is not None and _is_composable(annotation):
                return True
            literal = annotation is not None and ast.unparse(annotation).startswith("Literal[")
            return text and (literal or scope.name in self.handing_on)
        values = list(_assigned(name, scope)) or self.constants.get(name, [])
        return bool(values) and all(self.composed(value, scope, text=text) for value in values)


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


def _handed_on(function: ast.FunctionDef) -> tuple[int, str] | None:
    """Return the parameter, if any, that a function executes as it is."""
    parameters = _annotations(function)
    for _call, _executing, text in _calls(function, EXECUTING):
        name = ast.unparse(text)
        annotation = parameters.get(name)
        if name in parameters and not (annotation is not None and _is_composable(annotation)):
            return list(parameters).index(name), name
    return None


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


def _annotations(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {argument.arg: argument.annotation for argument in arguments if argument.arg != "self"}


def _is_composable(annotation: ast.expr) -> bool:
    spelled = ast.unparse(annotation)
    return bool(re.fullmatch(r"(Sequence\[)?(sql\.)?(SQL|Composed|Composable)\]?", spelled))
