"""`edgeflash batch`: a table of units becomes images and cards, each with its own token; errors by line; goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgeagent import crypto
from edgeagent.proto.token import Token
from flash import batch
from flash.cli import main
from flash.errors import FlashError
from flash.make import make_image
from tests.flash import kit
from tests.flash.kit import DEBIAN, MIB, cat, tool
from tests.flash.test_image import joins_with

API_TOKEN = "em_abcdefgh_secretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """Answers as POST /api/v1/tokens of the hub does (docs/api.md)."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == f"Bearer {API_TOKEN}" and self.path == "/api/v1/tokens"
        if known:
            self.asked.append(body)
            made = kit.token(len(self.asked), tags=body["tags"])
            answer: dict[str, Any] = {"token": made, "id": "c", "not_after": 0}
        else:
            answer = {"title": "Not allowed", "status": 403, "detail": "This API token has not the scope tokens:write."}
        data = json.dumps(answer).encode()
        self.send_response(201 if known else 403)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(folder: Path, table: str, *more: str) -> int:
    (folder / "units.csv").write_text(table)
    source = folder / "root.ext4"
    if not source.exists():
        kit.ext4(folder, DEBIAN)
    words = ["batch", str(folder / "units.csv"), "--image", str(source), "--init", "direct", "--board", "qemu-arm64"]
    return main([*words, "--agent", str(kit.zipapp(folder)), *more])


def tokens_file(folder: Path, *numbers: int) -> str:
    """As several `edgehub token create --json` one after the other print them."""
    path = folder / "tokens.json"
    path.write_text(
        "\n".join(json.dumps({"token": kit.token(number, tags=["tag:a"]), "id": "c"}, indent=2) for number in numbers)
    )
    return str(path)


def claim(folder: Path, image: Path) -> str:
    text = joins_with(folder, cat(image, "/var/lib/edgeagent/token"))
    return Token.decode(crypto.load(), text).claim


def test_each_unit_gets_its_own_token_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    table = "name,board,tags,dns\ncam-1,,a,off\ncam-2,debian-arm64,,\n\ncam-3,,tag:a,server\n"
    assert run(tmp_path, table, "--tokens", tokens_file(tmp_path, 0, 1, 2), "--out", str(out)) == 0
    for number, name in enumerate(("cam-1", "cam-2", "cam-3")):
        image = out / f"{name}.img"
        tool("e2fsck", "-fn", image)
        assert claim(tmp_path, image) == "c-" + "abc"[number] * 16
        assert cat(image, "/etc/hostname") == f"{name}\n".encode()
    assert b"dns = off" in cat(out / "cam-1.img", "/etc/edgeagent.conf")
    assert json.loads(cat(out / "cam-2.img", "/etc/edgeagent/board.json"))["id"] == "debian-arm64"
    report = (out / "report.json").read_text()
    shown = capsys.readouterr().out
    assert [unit["state"] for unit in json.loads(report)["units"]] == ["done"] * 3
    assert "em1." not in report + shown and "c-" + "a" * 16 in shown
    assert sorted(path.name for path in out.iterdir()) == ["cam-1.img", "cam-2.img", "cam-3.img", "report.json"]


def test_a_run_that_was_stopped_goes_on_with_the_tokens_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "out", "name\nu1\nu2\nu3\n"
    tokens, real = tokens_file(tmp_path, 0, 1, 2), make_image
    calls: list[str] = []

    def fails_once(order: Any, target: Path, *words: Any, **more: Any) -> Any:
        calls.append(target.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(order, target, *words, **more)

    monkeypatch.setattr(batch, "make_image", fails_once)
    assert run(tmp_path, table, "--tokens", tokens, "--out", str(out)) == 130
    assert run(tmp_path, table, "--tokens", tokens, "--out", str(out)) == 0
    assert calls == ["u1.img", "u2.img", "u2.img", "u3.img"]
    assert [claim(tmp_path, out / f"u{number}.img")[2] for number in (1, 2, 3)] == ["a", "b", "c"]
    assert run(tmp_path, table, "--tokens", tokens, "--out", str(out)) == 0 and len(calls) == 4
    capsys.readouterr()
    assert run(tmp_path, "name,dns\nu1,off\nu2,\nu3,\n", "--tokens", tokens, "--out", str(out)) == 1
    assert "u1 (line 2) has been made already, of another image or other settings" in capsys.readouterr().err


def test_what_fails_is_in_the_report_and_the_others_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    table = "name,board\nu1,\nu2,rpi-4b\nu3,\n"
    assert run(tmp_path, table, "--tokens", tokens_file(tmp_path, 0, 1, 2), "--out", str(out), "--json") == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    units = {event["name"]: event for event in events if event["event"] == "unit"}
    assert units["u2"]["state"] == "failed" and units["u2"]["line"] == 3 and "no boot partition" in units["u2"]["error"]
    assert events[-1] == {"event": "done", "report": str(out / "report.json"), "made": 2, "failed": 1, "left": 0}
    assert (out / "u3.img").exists() and not (out / "u2.img").exists()


def test_tokens_come_from_the_hub(tmp_path: Path, hub: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "api").write_text(API_TOKEN + "\n")
    more = ("--hub", hub, "--api-token-file", str(tmp_path / "api"), "--out", str(out), "--expires", "24h")
    assert run(tmp_path, "name,tags\nu1,a b\nu2,\n", *more) == 0
    assert Hub.asked == [
        {"uses": 1, "expires_in": 86_400, "tags": ["tag:a", "tag:b"]},
        {"uses": 1, "expires_in": 86_400, "tags": []},
    ]
    assert [claim(tmp_path, out / f"u{number}.img")[2] for number in (1, 2)] == ["b", "c"]
    (tmp_path / "api").write_text("em_wrong")
    capsys.readouterr()
    assert run(tmp_path, "name,tags\nu3,\n", *more) == 1
    said = capsys.readouterr()
    assert "403: This API token has not the scope tokens:write." in said.err and "em_wrong" not in said.err + said.out
    assert run(tmp_path, "name\nu3\n", "--hub", "http://hub.example", *more[2:]) == 1
    assert "over https only" in capsys.readouterr().err


def test_units_go_onto_cards_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [tmp_path / "card1", tmp_path / "card2"]
    for card in cards:
        card.write_bytes(b"\xaa" * 32 * MIB)
    tokens, table = tokens_file(tmp_path, 0, 1, 2), "name\nu1\nu2\nu3\n"
    more = ("--tokens", tokens, "--devices", *map(str, cards), "--fixed")
    assert run(tmp_path, table, *more) == 1
    assert "give --yes" in capsys.readouterr().err and cards[0].read_bytes()[:1] == b"\xaa"
    assert run(tmp_path, table, *more, "--yes") == 0
    assert "1 units are to do: put in the next cards" in capsys.readouterr().err
    assert [claim(tmp_path, card)[2] for card in cards] == ["a", "b"]
    assert run(tmp_path, table, *more, "--yes") == 0
    assert [claim(tmp_path, card)[2] for card in cards] == ["c", "b"]
    assert not list(tmp_path.glob(".edgeflash*")) and not list(tmp_path.glob("*.part"))
    assert "em1." not in (tmp_path / "units.csv.report.json").read_text()


def test_a_card_that_is_too_small_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card"
    card.write_bytes(b"\xaa" * MIB)
    more = ("--tokens", tokens_file(tmp_path, 0), "--devices", str(card), "--fixed", "--yes")
    assert run(tmp_path, "name\nu1\n", *more) == 1
    assert "line 2: u1: " in (err := capsys.readouterr().err) and "Take a larger card" in err
    assert card.read_bytes() == b"\xaa" * MIB


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,board\nOne,\nb,rpi-9\nb,\nc,\nc,\n", ["csv:2: name 'One'", "csv:3: 'rpi-9': no such board",
          "csv:6: name 'c': is that of line 5"]),
        ("name,mtu\na,9\n", ["csv:2: setting mtu: '9'"]),
        ("name,colour\na,red\n", ["column 'colour': neither name, board, tags, token-file nor a setting"]),
        ("name,token\na,em1.x\n", ["a column `token` would keep secrets"]),
        ("board\nrpi-4b\n", ["one of them `name`"]),
        ("name,tags\na,tag:B\n", ["csv:2: a: tag 'tag:B'"]),
        ("name,tags\na\n", ["csv:2: has not as many cells"]),
        ("name\n", ["there is no unit in it"]),
        ('name\n"a', ["is no CSV"]),
        ("name,token-file\na,none\n", ["csv:2: a: ", "none: No such file"]),
        ("name,tags\na,b\n", ["csv:2: a: its token (c-aaaaaaaaaaaaaaaa) does not give tag:b"]),
        ("name\na\nb\nc\n", ["has 2 unused tokens, and 3 units need one"]),
        ("name,token-file\na,t\nb,t\n", ["csv:3: b: its token (c-eeeeeeeeeeeeeeee) is that of line 2 too"]),
        ("name,token-file\na,old\n", ["csv:2: a: its token: the token (c-ffffffffffffffff) expired"]),
    ],
)  # fmt: skip
def test_errors_are_told_by_line_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, said: list[str]
) -> None:
    (tmp_path / "root.ext4").write_bytes(bytes(4096))
    (tmp_path / "t").write_text(kit.token(4))
    (tmp_path / "old").write_text(kit.token(5, not_after=1_700_000_000))
    assert run(tmp_path, table, "--tokens", tokens_file(tmp_path, 0, 1), "--out", str(tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert all(each in err for each in said), err
    assert "Traceback" not in err and "em1.o" not in err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_report_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("", "[]", '{"version": 9, "units": []}', '{"version": 1, "units": [{}]}'):
        path.write_text(text)
        with pytest.raises(FlashError, match="is no report of edgeflash batch"):
            batch.Report(path)
