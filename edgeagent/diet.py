"""Imported by the agent before all else: what standard modules bring along and an agent has no use for. 0.8 MiB.

It has to come first: what is freed later is holes between things that stay.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Lazy(ModuleType):
    """A module that is imported when something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(__import__(self.__name__), name)


class _Math(_Lazy):
    """What `selectors` wants of it, at each wait."""

    @staticmethod
    def ceil(number: float) -> int:
        return -int(-number // 1)


def begin() -> None:
    """Harmless where a module is loaded already, or is not as expected."""
    sys.modules.setdefault("math", _Math("math"))  # its shared object brings the C library's libm
    # logging wants it for exceptions only; it brings linecache, tokenize and textwrap.
    sys.modules.setdefault("traceback", _Lazy("traceback"))
    import _ssl  # not ssl: its own imports come later, into the room that this makes

    # 3,000 error names as Python objects. Without them an SSLError still has OpenSSL's own text.
    for table in ("err_codes_to_names", "err_names_to_codes"):
        getattr(_ssl, table, {}).clear()
