"""The C library under AddressSanitizer and UBSan: its self-test, and a few seconds of each fuzz target."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgeagent.engine.fast.build import BuildError, build, find_compiler
from tools import OBJECTS, fuzz

HERE = Path(__file__).parent
SECONDS = 1
BROKEN = """\
#include <stdlib.h>
#include "fuzz.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size + 1), last;
    copy[0] = 0;
    last = size > 40 ? copy[size + 1] : copy[0];
    free(copy);
    return last == 77 ? data[0] & 0 : 0;
}
"""


@pytest.fixture(scope="module", autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("probe") / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    try:
        command = [*find_compiler(), "-fsanitize=address,undefined", str(source), "-o", str(source.with_suffix(""))]
    except BuildError as error:
        pytest.skip(str(error))
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("the compiler has no sanitizers")


@pytest.mark.parametrize("sanitizer", ["address", pytest.param("thread", marks=pytest.mark.slow)])
def test_the_self_test_passes(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "self_test"
    build(program, find_compiler(), sanitize=sanitizer, mains=[HERE / "self_test.c"], cache=OBJECTS)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("self-test passes\n")


@pytest.mark.parametrize("name", fuzz.names())
def test_a_short_run_finds_nothing(tmp_path: Path, name: str) -> None:
    """From another seed each time, which is in the message."""
    program = fuzz.build_driven(name, tmp_path / name)
    seed = int.from_bytes(os.urandom(3), "big") + 1
    said = fuzz.run(program, [f"-seed={seed}", f"-max_total_time={SECONDS}"], tmp_path, 60)
    runs = int(said.strip().splitlines()[-1].split()[0])
    assert runs > 10


def test_what_is_found_is_kept_and_can_be_repeated(tmp_path: Path) -> None:
    target, program = tmp_path / "fuzz_broken.c", tmp_path / "broken"
    target.write_text(BROKEN)
    command = [*find_compiler(), "-fsanitize=address,undefined", f"-I{HERE}", str(target), str(fuzz.DRIVER)]
    subprocess.run([*command, "-o", str(program)], check=True)
    with pytest.raises(fuzz.Crash, match=r"heap-buffer-overflow[\s\S]*Repeat it: ") as found:
        fuzz.run(program, ["-seed=1", "-runs=1000"], tmp_path, 60)
    again = str(found.value).rpartition("Repeat it: ")[2].split()
    assert Path(again[1]).stat().st_size > 40
    repeated = subprocess.run(again, capture_output=True, text=True, timeout=60, check=False)
    assert repeated.returncode != 0
    assert "heap-buffer-overflow" in repeated.stderr
