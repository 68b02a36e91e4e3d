"""Whatever a user can type, set, or see counted is in docs/reference.md, and links in the docs lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tools import reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_is_current() -> None:
    assert reference.TARGET.read_text(encoding="utf-8") == reference.render(), "run ./dev docs"


def test_every_command_and_reason_is_in_the_reference() -> None:
    text = reference.TARGET.read_text(encoding="utf-8")
    commands = [command for listed in reference.programs().values() for command in listed]
    assert len(commands) > 20
    assert [command.name for command in commands if f"### `{command.name}`" not in text] == []
    reasons = [reason for listed in reference.reasons(ROOT).values() for reason in listed]
    assert len(reasons) > 40
    assert [reason.value for reason in reasons if f"| `{reason.value}` |" not in text] == []


def test_every_console_script_is_in_the_reference() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert list(reference.programs()) == list(scripts)


def test_no_two_reasons_share_a_name_on_one_machine() -> None:
    agent = [
        reason.value
        for title, listed in reference.reasons(ROOT).items()
        for reason in listed
        if "hub" not in title and "relay dropped" not in title
    ]
    assert sorted(agent) == sorted(set(agent))


def test_what_is_undocumented_is_refused(tmp_path: Path) -> None:
    for folder in reference.REASONS_IN:
        (tmp_path / folder).mkdir(parents=True)
    source = tmp_path / "hub/core/x.py"
    source.write_text('class MyDrop(Enum):\n    """Why, said here."""\n\n    A = "a"  # because\n    B = "b"\n')
    with pytest.raises(reference.Undocumented, match=r"hub/core/x\.py:5: no comment says what B = 'b' means"):
        reference.reasons(tmp_path)
    source.write_text('class MyDrop(Enum):\n    A = "a"  # because\n')
    with pytest.raises(reference.Undocumented, match="MyDrop has no docstring"):
        reference.reasons(tmp_path)
    with pytest.raises(reference.Undocumented, match="edgehub x: `--y` has no help text"):
        reference.Command("edgehub x", "does it", [("`--y`", "")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []
