"""One agent of three whose wall clock is wrong, as separate processes with certificates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from processes import ENVIRONMENT, network, write

from p2pqg.security import issue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long skew(void) { const char *s = getenv("SKEW_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int rc = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += skew();
    return rc;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec; now->tv_usec = t.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (at) *at = t.tv_sec;
    return t.tv_sec;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of the process it is loaded into, and no other clock."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler, to load a wrong clock into a process")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "skew.c").write_text(SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(folder / "skew.so"), str(folder / "skew.c"), "-ldl"], check=True
    )
    return folder / "skew.so"


def skewed(shim: Path, seconds: int) -> dict[str, str]:
    return ENVIRONMENT | {"LD_PRELOAD": str(shim), "SKEW_S": str(seconds)}


def three(folder: Path) -> list[str]:
    """Agents whose certificates are a moment old."""
    names = network(folder, 3, rounds=40, finish={"max_rounds": 0}, agent={"start_timeout_s": 60.0})
    files = issue(folder / "certificates", names)
    for name in names:
        path = folder / name / "agent.toml"
        tls = {key: str(getattr(files[name], key)) for key in ("certificate", "private_key", "authority")}
        write(path, tomllib.loads(path.read_text()) | {"tls": tls})
    return names


def join(folder: Path, name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "p2pqg.cli.main", "join", "--config", str(folder / name / "agent.toml")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_six_seconds_and_an_hour_change_nothing(shim: Path, tmp_path: Path) -> None:
    """One is right, one six seconds fast, one an hour slow; connections are mutual TLS."""
    names = three(tmp_path)
    skews = dict(zip(names, (0, 6, -3600), strict=True))
    seen = "import time; print(time.time())"
    command = [sys.executable, "-c", seen]
    slow_s = float(subprocess.check_output(command, env=skewed(shim, -3600)))
    assert 3500 < time.time() - slow_s < 3700, "the clock is wrong indeed"
    processes = [join(tmp_path, name, skewed(shim, skews[name])) for name in names]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    for name in names:
        lines = (tmp_path / name / "home" / "metrics.jsonl").read_text().splitlines()
        rounds = [json.loads(line) for line in lines]
        assert [line["round"] for line in rounds] == list(range(1, 41))
        assert all(line["neighbours"] == 2 and not line["missed"] for line in rounds)


def test_a_clock_before_the_certificate_is_said_to_be(shim: Path, tmp_path: Path) -> None:
    """Certificates are dated back a day; a clock that is slower than that proves its name to nobody."""
    names = three(tmp_path)
    process = join(tmp_path, names[0], skewed(shim, -2 * 86_400))
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 2
    assert "not valid before" in error or "clock" in error, error
