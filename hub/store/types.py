"""Column types and defaults that SQLite and PostgreSQL both take."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, LargeBinary
from sqlalchemy import Integer as _Integer
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

Integer = BigInteger().with_variant(_Integer(), "sqlite")  # 64 bits; SQLite numbers its rows by this word alone
BLOB = LargeBinary()


class EmptyBlob(ColumnElement[bytes]):
    """A default of no bytes, which each engine writes in its own way."""

    inherit_cache = True


@compiles(EmptyBlob)
def _of_others(element: EmptyBlob, compiler: Any, **_: Any) -> str:
    return "''"


@compiles(EmptyBlob, "sqlite")
def _of_sqlite(element: EmptyBlob, compiler: Any, **_: Any) -> str:
    return "x''"
