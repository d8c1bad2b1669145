"""How samples are shared out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError
from p2pqg.tasks import PARTITIONS, partition
from p2pqg.tasks.partition import dirichlet_lists

LABELS = np.arange(1437) % 10


@given(
    kind=st.sampled_from(sorted(PARTITIONS)),
    n=st.integers(1, 24),
    alpha=st.sampled_from([0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_shares_are_disjoint_fair_and_reproducible(kind: str, n: int, alpha: float, seed: int) -> None:
    shares = partition(kind, LABELS, n, alpha, seed)
    together = np.concatenate(shares)
    assert len(shares) == n
    assert len(np.unique(together)) == len(together)
    assert set(together) <= set(range(len(LABELS)))
    if kind == "dirichlet-plain":
        assert len(together) == len(LABELS)
        assert min(map(len, shares)) >= 1
    else:
        assert {len(share) for share in shares} == {len(LABELS) // n}
    again = partition(kind, LABELS, n, alpha, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@pytest.mark.parametrize("kind", PARTITIONS)
def test_seeds_matter(kind: str) -> None:
    a, b = partition(kind, LABELS, 4, 1.0, 6), partition(kind, LABELS, 4, 1.0, 7)
    assert not np.array_equal(a[0], b[0])


@pytest.mark.parametrize("kind", ["dirichlet", "dirichlet-plain"])
def test_small_alpha_concentrates_classes(kind: str) -> None:
    def largest_class(alpha: float) -> float:
        shares = partition(kind, LABELS, 10, alpha, 6)
        return float(np.mean([np.bincount(LABELS[own]).max() / len(own) for own in shares]))

    assert largest_class(100.0) < 0.2 < 0.4 < largest_class(0.1)


@pytest.mark.parametrize(
    ("samples", "n", "alpha", "seed"),
    [
        (1437, 8, 0.1, 1),
        (1437, 16, 1.0, 6),
        (1437, 20, 0.1, 7),
        (1437, 23, 10.0, 8),
        (100, 10, 0.05, 6),  # a class is as large as the cap, which is then met exactly
    ],
)
def test_papers_partition_follows_the_written_procedure_draw_for_draw(
    samples: int, n: int, alpha: float, seed: int
) -> None:
    """Section 3.1 of the protocol in plain loops over samples."""
    labels = LABELS[:samples]
    random = np.random.RandomState(seed)
    rows = np.array([[index, label] for index, label in enumerate(labels)])
    random.shuffle(rows)
    expected: list[list[int]] = []
    while len(expected) < n:
        G = min(10, n - len(expected))
        first = len(expected) // 10 * int(10 / n * len(rows))
        last_group = len(expected) + G == n
        group = rows[first:] if last_group else rows[first : first + int(10 / n * len(rows))]
        S = len(group)
        lists: list[list[int]] = [[] for _ in range(G)]
        while min(map(len, lists)) < int(0.5 * S / G):
            lists = [[] for _ in range(G)]
            for c in range(10):
                members = [int(index) for index, label in group if label == c]
                p = random.dirichlet([alpha] * G)
                p = np.array([p[j] if len(lists[j]) < S / G else 0.0 for j in range(G)])
                bounds = [int(bound) for bound in np.cumsum(p / p.sum()) * len(members)]
                bounds = [0, *bounds[:-1], len(members)]
                for j in range(G):
                    lists[j] += members[bounds[j] : bounds[j + 1]]
        expected += lists
    found = dirichlet_lists(labels, n, alpha, seed)
    assert [own.tolist() for own in found] == expected
    joined = [index for own in expected for index in own]
    size = samples // n
    for i, share in enumerate(partition("dirichlet", labels, n, alpha, seed)):
        assert share.tolist() == joined[i * size : (i + 1) * size]


def test_every_class_is_shared_out_whole() -> None:
    shares = partition("dirichlet-plain", LABELS, 7, 0.5, 3)
    together = np.concatenate(shares)
    assert np.bincount(LABELS[together]).tolist() == np.bincount(LABELS).tolist()


def test_iid_needs_no_labels() -> None:
    assert len(partition("iid", np.linspace(0, 1, 10), 3, 1.0, 0)) == 3


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize(("n", "alpha", "message"), [
    (1438, 1.0, "between 1 and 1437 agents .* found 1438"),
    (0, 1.0, "between 1 and 1437 agents .* found 0"),
    (4, 0.0, "positive number, found 0"),
    (4, -1.0, "positive number, found -1"),
    (4, float("nan"), "positive number, found nan"),
])  # fmt: skip
def test_impossible_requests_are_refused(kind: str, n: int, alpha: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(kind, LABELS, n, alpha, 0)


def test_other_errors_name_what_was_found() -> None:
    with pytest.raises(ConfigError, match="dirichlet, dirichlet-plain, iid, found 'zipf'"):
        partition("zipf", LABELS, 4, 1.0, 0)
    with pytest.raises(ConfigError, match="one whole number for each sample, found float64"):
        partition("dirichlet", LABELS / 2, 4, 1.0, 0)
    with pytest.raises(ConfigError, match=r"found int64 \(3, 2\)"):
        partition("dirichlet", np.zeros((3, 2), dtype=np.int64), 2, 1.0, 0)
    with pytest.raises(ConfigError, match=r"2\^32.*found 4294967296"):
        partition("dirichlet", LABELS, 4, 1.0, 2**32)


@pytest.mark.parametrize("kind", ["dirichlet", "dirichlet-plain"])
@pytest.mark.filterwarnings("error")
def test_an_alpha_that_no_draw_can_satisfy_is_an_error_and_not_a_hang(kind: str) -> None:
    with pytest.raises(ConfigError, match="larger alpha, fewer agents") as caught:
        partition(kind, LABELS, 16, 1e-9, 0)
    assert caught.value.key == "task.alpha"
