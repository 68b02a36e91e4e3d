"""Hatchling's build hook: the C library and the dashboard's assets go into the wheel, or beside their sources where the
install is editable.

The library is optional: without a compiler, or where it does not compile or fails its self-test, a note of why takes
its place, and the agent runs its Python engine. EDGEAGENT_FAST=require makes that an error, EDGEAGENT_FAST=no builds
nothing. So are the assets, which npm brings: without it, a note of why takes their place, which the dashboard shows.
EDGEHUB_ASSETS likewise.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

FOLDER = "edgeagent/engine/fast"
VARIABLE = "EDGEAGENT_FAST"
WANTS = ("", "require", "no")
ASSETS_VARIABLE = "EDGEHUB_ASSETS"


class FastLibraryHook(BuildHookInterface[Any]):
    """`version` is "standard" or "editable", of the wheel; a source distribution needs nothing but the sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        want = os.environ.get(VARIABLE, "")
        if want not in WANTS:
            raise ValueError(f"{VARIABLE}={want!r}: want require, no, or nothing")
        if version != "editable":  # there `./dev` brings them
            bring_assets(Path(self.root), self.app.display_warning)
        folder = Path(self.root, FOLDER)
        builder = load(folder / "build.py")
        if version == "editable":
            if want != "no":
                put(builder, folder, want)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="edgefast-")
        made = Path(self._scratch.name)
        if want == "no":
            (made / builder.NOTE).write_text(f"{VARIABLE}=no at the time of the install\n", encoding="utf-8")
        else:
            put(builder, made, want)
        for path in made.iterdir():
            build_data["force_include"][str(path)] = f"{FOLDER}/{path.name}"
        if (made / builder.LIBRARY).exists():
            build_data["pure_python"] = False
            # Any Python 3, this machine. The tag is linux_*, as what manylinux and musllinux promise was not checked.
            machine = next(tag for tag in platform_tags() if tag.startswith("linux_"))
            build_data["tag"] = f"py3-none-{machine}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if scratch := getattr(self, "_scratch", None):
            scratch.cleanup()


def put(builder: ModuleType, folder: Path, want: str) -> None:
    """Leave in `folder` the library, or the note that says why not."""
    library, note = folder / builder.LIBRARY, folder / builder.NOTE
    try:
        builder.build(library, builder.find_compiler())
        builder.try_out(str(library))
    except builder.BuildError as error:
        if want == "require":
            raise RuntimeError(f"{VARIABLE}=require, and the C library cannot be built: {error}") from None
        library.unlink(missing_ok=True)
        note.write_text(f"{error}\n", encoding="utf-8")
    else:
        note.unlink(missing_ok=True)


def bring_assets(root: Path, warn: Callable[[str], object]) -> None:
    """Have them in the dashboard's folder, or the note that says why not; `artifacts` in pyproject.toml packs both."""
    want = os.environ.get(ASSETS_VARIABLE, "")
    if want not in WANTS:
        raise ValueError(f"{ASSETS_VARIABLE}={want!r}: want require, no, or nothing")
    vendor = load(root / "tools" / "vendor.py")
    if vendor.is_current(root):
        return
    try:
        if want == "no":
            raise vendor.VendorError(f"{ASSETS_VARIABLE}=no at the time of the install")
        vendor.bring(root)
    except vendor.VendorError as error:
        if want == "require":
            raise RuntimeError(f"{ASSETS_VARIABLE}=require, and the dashboard has no assets: {error}") from None
        warn(f"the dashboard has no assets: {error}")
        (root / vendor.FOLDER).with_name(vendor.NOTE).write_text(f"{error}\n", encoding="utf-8")


def load(path: Path) -> ModuleType:
    """A file as a module of its own: the package around it is not installed yet."""
    spec = importlib.util.spec_from_file_location(f"edgemesh_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
