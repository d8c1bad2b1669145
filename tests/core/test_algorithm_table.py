"""The page about algorithms says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pqg.algorithms import ALGORITHMS, build, hyper_parameters, table

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"

PAPER = (
    "d2", "d2-plus", "dadam", "dmsgd-option-1", "dsgd", "dsgd-gt", "dsgdm", "dsgdm-buffer-ring", "dsgdm-n",
    "dsgdm-n-buffer-complete", "dsgdm-n-buffer-ring", "dsgdm-n-gradients-ring", "dsgdm-n-gt", "qg-dadam",
    "qg-dsgdm", "qg-dsgdm-n", "qg-sgdm-n", "sgdm-n", "slowmo",
)  # fmt: skip
"""Method, and variant where there is one, of every row of the paper's tables."""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == table.page(), "python -m p2pqg.algorithms.table > docs/algorithms.md"


@pytest.mark.parametrize(("name", "kept", "sent", "needs"), [
    ("dsgd", "0", "1", "-"),
    ("qg-dsgdm-n", "1", "1", "-"),
    ("qg-dadam", "2, a counter", "1", "-"),
    ("dsgd-gt", "2", "2", "one local step"),
    ("dsgdm-n-gt", "3", "2", "one local step"),
    ("d2-plus", "2", "1", "symmetric W, one local step"),
    ("dsgdm-n-buffer-ring", "1", "2", "-"),
    ("dsgdm-n-buffer-complete", "1", "1 + 1 mean", "exact means"),
    ("slowmo", "3, a counter", "1 + 1/12 mean", "exact means"),
    ("mimelite", "1", "2 means", "exact means, gradients on all own samples"),
    ("sgd", "0", "1 mean", "exact means"),
])  # fmt: skip
def test_what_a_method_costs(name: str, kept: str, sent: str, needs: str) -> None:
    algorithm = build(name)
    assert (table.kept(algorithm), table.sent(algorithm), table.needs(algorithm)) == (kept, sent, needs)


def test_options_change_what_it_costs() -> None:
    assert table.kept(build("qg-dsgdm", tau=3)) == "2, a counter"
    assert table.kept(build("qg-dsgdm", tau=3, form="printed")) == "1, a counter"
    assert table.sent(build("slowmo", tau=4)) == "1 + 1/4 mean"


def test_every_method_of_the_paper_is_there_and_everything_is_documented() -> None:
    assert set(PAPER) <= set(ALGORITHMS)
    for name in ALGORITHMS:
        assert build(name).source
        assert all(each.metadata["doc"] for each in hyper_parameters(name).values())
