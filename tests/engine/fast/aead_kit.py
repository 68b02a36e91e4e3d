"""The AEAD of the C library for tests, with guard bytes around every text."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeagent.engine.fast import build, library
from tools import OBJECTS

SOURCES = Path(library.__file__).parent
TAG = 16
GUARD = bytes(range(160, 192))


def library_path(folder: Path) -> Path:
    """What is installed, when it is as new as its sources, else one that is built in `folder`."""
    installed = library.path()
    if installed and Path(installed).stat().st_mtime >= max(file.stat().st_mtime for file in SOURCES.glob("*.[ch]")):
        return Path(installed)
    made = folder / build.LIBRARY
    build.build(made, build.find_compiler(), cache=OBJECTS)
    return made


class Aeads:
    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name, arguments, result in (
            ("provider", (ctypes.c_uint,), ctypes.c_char_p),
            ("new", (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_void_p),
            ("free", (ctypes.c_void_p,), None),
            ("name", (ctypes.c_void_p,), ctypes.c_char_p),
            ("version", (ctypes.c_void_p,), ctypes.c_char_p),
            ("measure", (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint, ctypes.c_uint), ctypes.c_double),
            (
                "seal",
                (ctypes.c_void_p, *(ctypes.c_char_p, ctypes.c_uint64), *(ctypes.c_void_p,) * 2, ctypes.c_uint),
                None,
            ),
            (
                "open",
                (ctypes.c_void_p, ctypes.c_char_p, *(ctypes.c_void_p,) * 3, ctypes.c_uint, ctypes.c_void_p),
                None,
            ),
        ):
            function = getattr(self._library, f"ea_aead_{name}")
            function.argtypes, function.restype = arguments, result
            setattr(self, f"_{name}", function)

    def names(self) -> list[str]:
        found: list[str] = []
        while name := self._library.ea_aead_provider(len(found)):
            found.append(name.decode())
        return found

    @contextmanager
    def provider(self, name: str) -> Iterator[Aead]:
        """Raises LookupError with the reason when it is not there."""
        why = ctypes.create_string_buffer(200)
        made = self._library.ea_aead_new(name.encode(), why, len(why))
        if not made:
            raise LookupError(why.value.decode())
        try:
            yield Aead(self._library, made)
        finally:
            self._library.ea_aead_free(made)


class Aead:
    """`offset`: bytes more before each text, which with odd sizes brings all kinds of addresses."""

    def __init__(self, library: ctypes.CDLL, made: int) -> None:
        self._library = library
        self._made = made
        self.name = library.ea_aead_name(made).decode()
        self.version = library.ea_aead_version(made).decode()

    def measure(self, size: int, batch: int, milliseconds: int) -> float:
        return float(self._library.ea_aead_measure(self._made, size, batch, milliseconds))

    def seal(self, key: bytes, first: int, texts: Sequence[bytes], offset: int = 0) -> list[bytes]:
        """text ‖ tag of each."""
        texts_at, memory, places = _lay_out([text + bytes(TAG) for text in texts], offset)
        sizes = (ctypes.c_uint32 * len(texts))(*map(len, texts))
        self._library.ea_aead_seal(self._made, key, first, texts_at, sizes, len(texts))
        return _taken(memory, places)

    def open(self, key: bytes, counters: Sequence[int], sealed: Sequence[bytes], offset: int = 0) -> list[bytes | None]:
        """The text of each, None for one that was refused."""
        texts_at, memory, places = _lay_out(sealed, offset)
        n = len(sealed)
        sizes = (ctypes.c_uint32 * n)(*(len(each) - TAG for each in sealed))
        ok = (ctypes.c_uint8 * (n + 1))(*[7] * (n + 1))
        self._library.ea_aead_open(self._made, key, (ctypes.c_uint64 * n)(*counters), texts_at, sizes, n, ok)
        assert ok[n] == 7
        assert set(ok[:n]) <= {0, 1}
        after = _taken(memory, places)
        for before, now in zip(sealed, after, strict=True):
            assert before[-TAG:] == now[-TAG:], "the tag behind the text was changed"
        return [text[:-TAG] if good else None for text, good in zip(after, ok[:n], strict=True)]


def _lay_out(texts: Sequence[bytes], offset: int) -> tuple[object, ctypes.Array[ctypes.c_char], list[tuple[int, int]]]:
    """(pointers, memory, (start, size) of each text): each between guard bytes."""
    data = bytearray(64)
    places = []
    for text in texts:
        data += GUARD + bytes(offset)
        places.append((len(data), len(text)))
        data += text + GUARD
    memory = (ctypes.c_char * len(data)).from_buffer_copy(bytes(data))
    start = ctypes.addressof(memory)
    return (ctypes.c_void_p * len(texts))(*(start + at for at, _ in places)), memory, places


def _taken(memory: ctypes.Array[ctypes.c_char], places: list[tuple[int, int]]) -> list[bytes]:
    data = memory.raw
    end = 64
    for at, size in places:
        assert data[end : end + len(GUARD)] == GUARD, "written before the text"
        assert data[at + size : at + size + len(GUARD)] == GUARD, "written behind the tag"
        end = at + size + len(GUARD)
    return [data[at : at + size] for at, size in places]
