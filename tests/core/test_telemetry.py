"""Metrics are parseable at every moment and a resumed file equals an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pqg.errors import StorageError
from p2pqg.telemetry import MetricsWriter, read_metrics


def test_each_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        for round in range(3):
            metrics.write(round, {"loss": 0.5})
            assert [record["round"] for record in read_metrics(path)] == list(range(round + 1))


def test_values_json_cannot_hold_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(0, {"loss": float("nan"), "per_agent": [1.0, float("inf")], "in": {"x": -float("inf")}})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"round": 0, "loss": None, "per_agent": [1.0, None], "in": {"x": None}}


@pytest.mark.parametrize("torn", [b"", b'{"round": 6, "lo', b"{"])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path, torn: bytes) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    with MetricsWriter(whole) as metrics:
        for round in range(8):
            metrics.write(round, {"loss": 1 / (round + 1)})
    with MetricsWriter(resumed) as metrics:
        for round in range(6):
            metrics.write(round, {"loss": 1 / (round + 1)})
    resumed.write_bytes(resumed.read_bytes() + torn)
    with MetricsWriter(resumed, resume_after=3) as metrics:
        for round in range(4, 8):
            metrics.write(round, {"loss": 1 / (round + 1)})
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n')
    MetricsWriter(path).close()
    assert path.read_bytes() == b""


def test_an_unwritable_place_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        MetricsWriter(tmp_path / "none" / "metrics.jsonl")
