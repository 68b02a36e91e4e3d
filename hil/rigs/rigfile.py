"""Rig files: YAML as labgrid reads it, checked as a whole before anything is touched. Errors name file, line and key.

PyYAML reads it, as it does in labgrid, so that both see the same values; only its nodes are used, which know their
lines, and nothing but plain scalars, lists and mappings: no tags, no anchors, one document.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hil.errors import HilError, RigFileWrong
from hil.rigs.schema import KINDS, NEEDED, RIG_OPTIONS, TARGET_OPTIONS, Key

FILE_BYTES_MAX = 65_536
NODES_MAX = 4_000
TARGETS_MAX = 64
_TOP = ("targets", "options", "imports", "images", "tools", "features")
_OF_TARGET = ("resources", "drivers", "options", "features", "role")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_WORDS = {str: "text", int: "a whole number", float: "a number with a point, as in 2.0", bool: "true or false"}


class Item:
    """A resource or a driver: its kind, its values with defaults filled in, and where it stands."""

    __slots__ = ("kind", "line", "values")

    def __init__(self, kind: str, line: int, values: dict[str, Any]) -> None:
        self.kind = kind
        self.line = line
        self.values = values


class TargetFile:
    """A target as it stands in the file."""

    __slots__ = ("drivers", "line", "name", "options", "resources")

    def __init__(
        self, name: str, line: int, resources: dict[str, Item], drivers: dict[str, Item], options: dict[str, Any]
    ) -> None:
        self.name = name
        self.line = line
        self.resources = resources
        self.drivers = drivers
        self.options = options

    def bound(self, driver: str) -> Item:
        """The resource that a driver is on."""
        (kind,) = [kind for kind in KINDS[driver].binds if kind in self.resources]
        return self.resources[kind]


class RigFile:
    """A rig as it stands in its file; `name` is the file's without its ending."""

    __slots__ = ("name", "options", "path", "targets")

    def __init__(self, path: Path, targets: dict[str, TargetFile], options: dict[str, Any]) -> None:
        self.path = path
        self.name = path.stem
        self.targets = targets
        self.options = options

    def file(self, value: str) -> Path:
        """A path as it stands in the file: below the file's folder, where it is relative."""
        return self.path.parent / Path(value).expanduser()


def load(path: Path) -> RigFile:
    """Raises RigFileWrong."""
    try:
        import yaml
    except ImportError:
        raise HilError("rig files are read with PyYAML: pip install 'edgemesh[hil]'") from None
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise RigFileWrong(f"{path}: {error.strerror}. `edgehil list --rigs FOLDER` shows those of a folder.") from None
    if len(data) > FILE_BYTES_MAX:
        raise RigFileWrong(f"{path}: more than {FILE_BYTES_MAX} bytes, which no rig needs.")
    try:
        text = data.decode()
        _refuse_more_than_plain(path, yaml.parse(text, yaml.SafeLoader), yaml)
        root = yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise RigFileWrong(f"{path}: byte {error.start} is no UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise RigFileWrong(f"{where}: no YAML: {getattr(error, 'problem', None) or error}.") from None
    return _Reader(path, yaml).rig(root)


def find(name: str, folders: Iterable[Path]) -> Path:
    """The file that `name` means: a path, or the name of one in `folders`. Raises RigFileWrong."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or "/" in name:
        return given
    known: list[str] = []
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            if path.stem == name:
                return path
            known.append(path.stem)
    raise RigFileWrong(f"no rig {name!r}; known are {', '.join(known) or 'none'}. A file is named by its path.")


def _refuse_more_than_plain(path: Path, events: Iterable[Any], yaml: Any) -> None:
    documents = nodes = 0
    for event in events:
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise RigFileWrong(f"{path}:{line}: a second document; a rig file is one.")
        if not isinstance(event, yaml.NodeEvent):
            continue
        nodes += 1
        if nodes > NODES_MAX:
            raise RigFileWrong(f"{path}:{line}: more than {NODES_MAX} values, which no rig needs.")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise RigFileWrong(f"{path}:{line}: anchors (&) and aliases (*) are not read; write the value twice.")
        if getattr(event, "tag", None) is not None:
            raise RigFileWrong(f"{path}:{line}: the tag {event.tag}: tags are not read; write the value itself.")


class _Reader:
    def __init__(self, path: Path, yaml: Any) -> None:
        self._path = path
        self._yaml = yaml
        self._constructor = yaml.constructor.SafeConstructor()

    def rig(self, root: Any) -> RigFile:
        if root is None:
            raise RigFileWrong(f"{self._path}: is empty. It wants `targets:`.")
        top = self._mapping(root, "the file")
        self._known(top, _TOP, "")
        if "targets" not in top:
            self._wrong(root, "the file", "has no `targets`")
        named = self._mapping(top["targets"][1], "targets")
        if not 1 <= len(named) <= TARGETS_MAX:
            self._wrong(top["targets"][0], "targets", f"{len(named)} of them; from 1 to {TARGETS_MAX} are wanted")
        targets = {}
        for name, (key, node) in named.items():
            if not _NAME.fullmatch(name):
                self._wrong(key, f"targets.{name[:40]}", "a target's name is a device's: a-z, 0-9 and '-', at most 32")
            targets[name] = self._target(name, key, node)
        options = self._values(top.get("options"), RIG_OPTIONS, "options")
        if bool(options["hub_url"]) != bool(options["hub_token_file"]):
            self._wrong(top["options"][0], "options", "hub_url and hub_token_file go together")
        return RigFile(self._path, targets, options)

    def _target(self, name: str, key: Any, node: Any) -> TargetFile:
        where = f"targets.{name}"
        parts = self._mapping(node, where)
        self._known(parts, _OF_TARGET, where)
        found = {role: self._items(parts.get(f"{role}s"), role, f"{where}.{role}s") for role in ("resource", "driver")}
        made = TargetFile(
            name,
            self._line(key),
            found["resource"],
            found["driver"],
            self._values(parts.get("options"), TARGET_OPTIONS, f"{where}.options"),
        )
        self._check_bindings(made, where)
        return made

    def _items(self, given: tuple[Any, Any] | None, role: str, where: str) -> dict[str, Item]:
        """Of `Kind: {…}` pairs, or of a list of such."""
        if given is None:
            return {}
        pairs: list[tuple[str, tuple[Any, Any]]] = []
        if isinstance(given[1], self._yaml.SequenceNode):
            for node in given[1].value:
                pairs += self._mapping(node, where).items()
        else:
            pairs += self._mapping(given[1], where).items()
        found: dict[str, Item] = {}
        kinds = [name for name, kind in KINDS.items() if kind.role == role]
        for name, (key, node) in pairs:
            if name not in kinds:
                other = KINDS.get(name)
                hint = f"is a {other.role}, and stands under `{other.role}s`" if other else ""
                self._wrong(key, f"{where}.{name[:40]}", hint or self._unlike(f"no such {role}", name, kinds))
            if name in found:
                self._wrong(key, f"{where}.{name}", "is there twice; a target has one of a kind")
            values = self._values((key, node), KINDS[name].keys, f"{where}.{name}", ("name",))
            found[name] = Item(name, self._line(key), values)
        return found

    def _check_bindings(self, target: TargetFile, where: str) -> None:
        """One driver for each protocol, one resource for each driver, and nothing that nobody uses."""
        given: dict[str, str] = {}
        used = {"SwitchPort"}
        for name, item in target.drivers.items():
            for protocol in KINDS[name].gives:
                if protocol in given:
                    self._at(
                        item.line, f"{where}.drivers.{name}", f"gives {protocol}, as {given[protocol]} does; take one"
                    )
                given[protocol] = name
            if not KINDS[name].binds:
                continue
            there = [kind for kind in KINDS[name].binds if kind in target.resources]
            if len(there) != 1:
                wanted = " or ".join(KINDS[name].binds)
                self._at(item.line, f"{where}.drivers.{name}", f"wants one resource {wanted}; there are {len(there)}")
            used |= set(there)
        for name, item in target.resources.items():
            if name not in used:
                drivers = [driver for driver, kind in KINDS.items() if name in kind.binds]
                self._at(item.line, f"{where}.resources.{name}", f"nothing uses it; it wants {' or '.join(drivers)}")
        if "GuestDriver" in target.drivers and "SwitchPort" in target.resources:
            item = target.resources["SwitchPort"]
            self._at(item.line, f"{where}.resources.SwitchPort", "a guest has its own cable; leave it out")

    def _values(
        self, given: tuple[Any, Any] | None, keys: Mapping[str, Key], where: str, more: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        pairs: dict[str, tuple[Any, Any]] = {}
        if given is not None and not self._is_null(given[1]):
            pairs = self._mapping(given[1], where)
        self._known(pairs, (*keys, *more), where)
        found: dict[str, Any] = {}
        for name, key in keys.items():
            if name in pairs:
                found[name] = self._value(pairs[name][1], key, f"{where}.{name}")
            elif key.default is NEEDED:
                assert given is not None
                self._wrong(given[0], f"{where}.{name}", f"is not there, and is needed: {key.text}")
            else:
                found[name] = key.default
        return found

    def _value(self, node: Any, key: Key, where: str) -> Any:
        if key.type is dict:
            return {name: self._scalar(pair[1], f"{where}.{name}") for name, pair in self._mapping(node, where).items()}
        value = self._scalar(node, where)
        if type(value) is not key.type:
            quoted = "; in quotes it is" if key.type is str and value is not None else ""
            self._wrong(node, where, f"{node.value[:40]!r} is not {_WORDS[key.type]}{quoted}")
        if key.among and value not in key.among:
            self._wrong(node, where, f"{value!r} is none of {', '.join(key.among)}")
        return value

    def _scalar(self, node: Any, where: str) -> Any:
        if not isinstance(node, self._yaml.ScalarNode):
            self._wrong(node, where, "wants one value, not a list or a mapping")
        try:
            return self._constructor.construct_object(node)
        except (ValueError, self._yaml.YAMLError):
            self._wrong(node, where, f"{node.value[:40]!r} cannot be read; quote it")

    def _mapping(self, node: Any, where: str) -> dict[str, tuple[Any, Any]]:
        """Name → (node of the name, node of the value)."""
        if self._is_null(node):
            return {}
        if not isinstance(node, self._yaml.MappingNode):
            self._wrong(node, where, "wants `name: value` pairs")
        found: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if not isinstance(key, self._yaml.ScalarNode):
                self._wrong(key, where, "a name is one word")
            if key.tag != "tag:yaml.org,2002:str" and not key.tag.endswith(":merge"):
                self._wrong(key, where, f"the name {key.value[:40]!r} is not text to YAML; write it in quotes")
            if key.value in found:
                self._wrong(key, f"{where}.{key.value[:40]}", "is there twice")
            found[key.value] = (key, value)
        return found

    def _is_null(self, node: Any) -> bool:
        return isinstance(node, self._yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"

    def _known(self, pairs: Mapping[str, tuple[Any, Any]], names: tuple[str, ...], where: str) -> None:
        for name, (key, _) in pairs.items():
            if name not in names:
                place = f"{where}.{name[:40]}".lstrip(".")
                self._wrong(key, place, self._unlike("no such key", name, names))

    @staticmethod
    def _unlike(what: str, name: str, known: Iterable[str]) -> str:
        listed = list(known)
        near = difflib.get_close_matches(name, listed, 1)
        return f"{what}{f' (is it {near[0]}?)' if near else ''}; known are {', '.join(listed)}"

    @staticmethod
    def _line(node: Any) -> int:
        return int(node.start_mark.line) + 1

    def _wrong(self, node: Any, where: str, what: str) -> NoReturn:
        self._at(self._line(node), where, what)

    def _at(self, line: int, where: str, what: str) -> NoReturn:
        raise RigFileWrong(f"{self._path}:{line}: {where}: {what}.")
