"""What can go wrong, drawn as a tree.

DagsterToolsError
├── ConfigurationError (ValueError)      an option, a name, a setting that cannot be meant
├── MaterializationNotFound (ValueError) an input nobody has materialized yet
├── SchemaConflict                       the table and the frame cannot both be right
├── UnsupportedFrame (TypeError)         a value or an annotation of no known frame library
├── BadValue (ValueError)                a value that does not fit its column
├── DatabaseError                        everything the server or the driver reports
│   └── GrantFailed                      a privilege that could not be given
└── SharePointError                      everything Microsoft Graph reports
    ├── SharePointAccessDenied           the sign-in was refused, or a permission is missing
    ├── SharePointNotFound               a site, library, folder or file that is not there
    │   └── FileDeleted                  a file to be read was deleted
    └── SharePointThrottled              more patience was asked for than there is

Messages name assets, tables, columns and rows, never a row's values and never
a secret: they end up in logs that more people read than the table.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BadValue",
    "ConfigurationError",
    "DagsterToolsError",
    "DatabaseError",
    "FileDeleted",
    "GrantFailed",
    "MaterializationNotFound",
    "SchemaConflict",
    "SharePointAccessDenied",
    "SharePointError",
    "SharePointNotFound",
    "SharePointThrottled",
    "UnsupportedFrame",
]


class DagsterToolsError(Exception):
    """Base of every error this package raises on purpose."""

    def about(self, subject: str) -> None:
        """Put what the message is about, such as the asset, in front of it."""
        self.args = (f"{subject}: {self}",)

    def __reduce__(self) -> tuple[object, ...]:
        # Dagster hands errors from process to process; attributes and message go along.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    cls: type[DagsterToolsError], args: tuple[object, ...], attributes: dict[str, object]
) -> DagsterToolsError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(DagsterToolsError, ValueError):
    """An option, a name or a setting that cannot be what the user means."""


class MaterializationNotFound(DagsterToolsError, ValueError):
    """An input was asked for that was never materialized."""

    @classmethod
    def for_partitions(
        cls, asset_key: str, partition_keys: Sequence[str]
    ) -> MaterializationNotFound:
        """Compose the message for partitions of one asset."""
        return cls(
            f"No materialization found for partitions {listed(partition_keys)} "
            f"(asset {asset_key}). Materialize them first, or set full_table: True on the "
            "input to load every row of the table whichever partition wrote it."
        )


def listed(names: Sequence[object]) -> str:
    """Return names as a message shows them: the first twenty, and how many more there are."""
    more = len(names) - 20
    return f"{list(names[:20])}" + (f" and {more} more" if more > 0 else "")


class SchemaConflict(DagsterToolsError):
    """The table and the frame cannot both be right, and no safe change reconciles them."""


class UnsupportedFrame(DagsterToolsError, TypeError):
    """A returned value, or an input's annotation, is of no class that can be stored or loaded."""


class BadValue(DagsterToolsError, ValueError):
    """A value does not fit its column.

    Args:
        reason: What is wrong with the value, without the value.
        column: The column's name.
        row: Position of the row in the frame, counted from 0.
        constraint: The constraint of the table that it violates.
    """

    def __init__(
        self,
        reason: str,
        *,
        column: str | None = None,
        row: int | None = None,
        constraint: str | None = None,
    ) -> None:
        self.reason = reason
        self.column = column
        self.row = row
        self.constraint = constraint
        where = [f"column {column!r}"] if column is not None else []
        where += [f"row {row}"] if row is not None else []
        super().__init__(f"{', '.join(where)}: {reason}" if where else reason)


class DatabaseError(DagsterToolsError):
    """The server or the driver reported an error.

    Args:
        message: What happened, without PostgreSQL's DETAIL and CONTEXT, which carry row values.
        sqlstate: PostgreSQL's five-character code (Appendix A of its documentation), if any.
        step: What was being done.
    """

    def __init__(
        self, message: str, *, sqlstate: str | None = None, step: str | None = None
    ) -> None:
        self.sqlstate = sqlstate
        self.step = step
        super().__init__(message)


class GrantFailed(DatabaseError):
    """A privilege could not be given."""


class SharePointError(DagsterToolsError):
    """Microsoft Graph or Microsoft Entra reported an error, or could not be reached.

    Args:
        message: What was asked for and what came of it; never a token or a pre-authenticated URL.
        status: The HTTP status, if there was an answer.
        code: Graph's own word for the error, such as `accessDenied`.
        request_id: What Microsoft's support asks for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.request_id = request_id
        super().__init__(message)

    @classmethod
    def because_of(cls, error: SharePointError, message: str) -> SharePointError:
        """Return an error of this class with the facts of another and a message that says more."""
        return cls(message, status=error.status, code=error.code, request_id=error.request_id)


class SharePointAccessDenied(SharePointError):
    """The sign-in was refused, or the app lacks a permission."""


class SharePointNotFound(SharePointError):
    """A site, a library, a folder or a file is not there, or not under this name alone."""


class FileDeleted(SharePointNotFound):
    """A file was to be read that was deleted."""


class SharePointThrottled(SharePointError):
    """The service asked to be left alone for longer than the client is willing to wait.

    Args:
        retry_after: Seconds it asked for.
    """

    def __init__(self, message: str, *, retry_after: float, status: int | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=status)
