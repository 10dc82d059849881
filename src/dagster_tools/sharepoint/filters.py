"""Which files of a folder are meant: small conditions, combined with `&`, `|` and `~`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from types import CodeType
from typing import Any, TypeAlias

from dagster_tools.errors import ConfigurationError
from dagster_tools.sharepoint.files import SharePointFile

__all__ = ["Contains", "FileFilter", "Filter", "Prefix", "Suffix"]

Predicate: TypeAlias = Callable[[SharePointFile], Any]


class FileFilter(ABC):
    """A condition on a file."""

    @abstractmethod
    def matches(self, file: SharePointFile) -> bool:
        """Tell whether the file is meant."""

    @property
    def definition(self) -> str:
        """What it says: another text when its functions' code is another, in every process."""
        return self.written(_signature)

    @abstractmethod
    def written(self, write: Callable[[Predicate], str]) -> str:
        """Return it as an expression, with functions written as told."""

    def __repr__(self) -> str:
        return self.written(lambda function: getattr(function, "__name__", repr(function)))

    def __and__(self, other: FileFilter) -> FileFilter:
        return _All((self, other))

    def __or__(self, other: FileFilter) -> FileFilter:
        return _Any((self, other))

    def __invert__(self) -> FileFilter:
        return _Not(self)


@dataclass(frozen=True, init=False, repr=False)
class _Named(FileFilter):
    """A condition on the file's name, whatever the case; any of the texts will do."""

    texts: tuple[str, ...]

    def __init__(self, *texts: str | Iterable[str]) -> None:
        kind = type(self).__name__
        given = tuple(_flattened(texts))
        if not given or not all(isinstance(text, str) and text for text in given):
            raise ConfigurationError(f'{kind} takes one or more texts, as in {kind}(".csv").')
        object.__setattr__(self, "texts", given)

    def written(self, write: Callable[[Predicate], str]) -> str:  # noqa: ARG002  # of its base
        return f"{type(self).__name__}({', '.join(map(repr, self.texts))})"

    def matches(self, file: SharePointFile) -> bool:
        name = file.name.casefold()
        return any(self._fits(name, text.casefold()) for text in self.texts)

    @staticmethod
    @abstractmethod
    def _fits(name: str, text: str) -> bool: ...


class Suffix(_Named):
    """Files whose name ends so.

    Example:
        >>> Suffix(".csv", ".txt") & ~Contains("draft")
        (Suffix('.csv', '.txt') & ~Contains('draft'))
    """

    @staticmethod
    def _fits(name: str, text: str) -> bool:
        return name.endswith(text)


class Prefix(_Named):
    """Files whose name begins so."""

    @staticmethod
    def _fits(name: str, text: str) -> bool:
        return name.startswith(text)


class Contains(_Named):
    """Files whose name has this somewhere."""

    @staticmethod
    def _fits(name: str, text: str) -> bool:
        return text in name


@dataclass(frozen=True, init=False, repr=False)
class Filter(FileFilter):
    """Files for which a function of one's own says so; any of several functions will do.

    The function is called with a `SharePointFile` that can be looked at and not read, also for
    what the file was before a change. It should say the same whenever it is asked.

    Example:
        >>> Filter(lambda file: file.size < 10_000_000 and "/Archive/" not in file.path)
        Filter(<lambda>)
    """

    functions: tuple[Predicate, ...]

    def __init__(self, *functions: Predicate) -> None:
        given: tuple[Any, ...] = functions
        for function in given:
            if not callable(function) or inspect.iscoroutinefunction(function):
                raise ConfigurationError(
                    f"Filter takes plain functions of a file, not {function!r}. It cannot be "
                    "asynchronous, since a file is not read to decide whether it is meant."
                )
        if not given:
            raise ConfigurationError("Filter takes one or more functions of a file.")
        object.__setattr__(self, "functions", functions)

    def written(self, write: Callable[[Predicate], str]) -> str:
        """Return it as an expression, with functions written as told."""
        return f"Filter({', '.join(map(write, self.functions))})"

    def matches(self, file: SharePointFile) -> bool:
        """Tell whether one of the functions says so."""
        return any(function(file) for function in self.functions)


@dataclass(frozen=True, repr=False)
class _All(FileFilter):
    operands: tuple[FileFilter, ...]

    def written(self, write: Callable[[Predicate], str]) -> str:
        return f"({' & '.join(operand.written(write) for operand in self.operands)})"

    def matches(self, file: SharePointFile) -> bool:
        return all(operand.matches(file) for operand in self.operands)


@dataclass(frozen=True, repr=False)
class _Any(FileFilter):
    operands: tuple[FileFilter, ...]

    def written(self, write: Callable[[Predicate], str]) -> str:
        return f"({' | '.join(operand.written(write) for operand in self.operands)})"

    def matches(self, file: SharePointFile) -> bool:
        return any(operand.matches(file) for operand in self.operands)


@dataclass(frozen=True, repr=False)
class _Not(FileFilter):
    operand: FileFilter

    def written(self, write: Callable[[Predicate], str]) -> str:
        return f"~{self.operand.written(write)}"

    def matches(self, file: SharePointFile) -> bool:
        return not self.operand.matches(file)


def _flattened(texts: Iterable[object]) -> Iterator[Any]:
    for text in texts:
        if isinstance(text, (list, tuple, set, frozenset)):
            yield from text
        else:
            yield text


def _signature(function: Predicate) -> str:
    """Return a function's name, and what changes with its own code."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name}#{sha256(repr(_essence(code)).encode()).hexdigest()[:12]}"


def _essence(constant: object) -> object:
    """Return what is the same in every process where a function's code is."""
    if isinstance(constant, CodeType):
        return constant.co_code, constant.co_names, tuple(map(_essence, constant.co_consts))
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))
    return repr(constant)
