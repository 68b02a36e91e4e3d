"""talk.py finds what was changed on the way; the suites themselves are slow."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.engines import engines
from hil.interop import talk
from hil.interop.ends import TALK, put
from hil.interop.suite import interop
from hil.machines import BY_NAME
from hil.programs import run

STORE = Path(__file__).parents[2] / "build/hil"
PROGRAMS = ("qemu-system-aarch64", "fakeroot", "mke2fs", "debugfs", "depmod", "mosquitto", "unshare", "wg")
needs = pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason="`./dev hil` installs them")


@pytest.fixture
def server() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with subprocess.Popen([sys.executable, "-I", str(TALK), "serve", str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        yield port
        process.kill()


@pytest.mark.parametrize("way", ["send", "receive"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_streams(server: int, way: str, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk.main([way, host, str(server), "300000"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == 300_000 and said["ok"] is True and said["seconds"] > 0


@pytest.mark.parametrize(("way", "answer"), [("send", bytes(32)), ("receive", bytes(32) + b"x" * 10)])
def test_what_is_not_what_was_sent(way: str, answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def lie() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(answer)

        thread = threading.Thread(target=lie)
        thread.start()
        assert talk.main([way, "127.0.0.1", str(listener.getsockname()[1]), "10"]) == 1
        thread.join(10)
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.skipif(shutil.which("debugfs") is None, reason="e2fsprogs is not here")
def test_files_are_put_into_an_image(tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    (root / "usr/bin").mkdir(parents=True)
    (root / "root").mkdir()
    run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "4M"], 60.0)
    put(image, {"/usr/bin/talk": TALK, "/root/talk.py": TALK})
    assert run(["debugfs", "-R", "cat /root/talk.py", str(image)], 60.0) == TALK.read_text()
    assert "Mode:  0755" in run(["debugfs", "-R", "stat /usr/bin/talk", str(image)], 60.0)
    assert "Mode:  0600" in run(["debugfs", "-R", "stat /root/talk.py", str(image)], 60.0)


@needs
@pytest.mark.slow
def test_the_kernels_wireguard_and_ours(tmp_path: Path) -> None:
    report = interop(BY_NAME["arm64"], STORE, tmp_path, print, engines=["fast"])
    assert report.passed, report.text()


@needs
@pytest.mark.slow
def test_each_engine_in_a_guest(tmp_path: Path) -> None:
    report = engines(BY_NAME["arm64"], STORE, tmp_path, print)
    assert report.passed, report.text()
    assert sum("resident memory" in figure["what"] for figure in report.figures) >= 6
