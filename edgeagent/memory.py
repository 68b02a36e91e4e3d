"""Give back what starting up needed and running does not."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress


def release() -> None:
    """Collect, take what is left as here to stay, and hand free heap pages back to the kernel.

    Importing leaves up to 5 MiB of free heap behind (where modules had to be compiled; 0.1 MiB where not). glibc keeps
    it unless asked; ctypes, to ask with, would cost 0.5 MiB itself, so cffi's backend asks, which PyNaCl has loaded.
    """
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Hand free heap pages back to the kernel, where the allocator can be asked to."""
    with suppress(ImportError, AttributeError, OSError):  # another libc, or neither is loaded: nothing to ask
        if "_cffi_backend" not in sys.modules and "ctypes" in sys.modules:
            sys.modules["ctypes"].CDLL(None).malloc_trim(0)
            return
        import _cffi_backend as cffi  # type: ignore[import-untyped]

        malloc_trim = cffi.load_library(None, 0).load_function(
            cffi.new_function_type((cffi.new_primitive_type("size_t"),), cffi.new_primitive_type("int")), "malloc_trim"
        )
        malloc_trim(0)
