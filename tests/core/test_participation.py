"""Who was missing when: the list stays short, and the sums right."""

from __future__ import annotations

from p2pqg.cli.views import participation_text
from p2pqg.participation import MOST_SPANS, Participation


def test_a_miss_for_the_same_reason_extends_its_span() -> None:
    participation = Participation()
    for round in range(3, 6):
        participation.count(round, [], {"basel": "deadline"})
    participation.count(6, ["basel"], {})
    assert participation.missing == [{"peer": "basel", "from": 3, "to": 5, "reason": "deadline"}]
    assert (participation.missed("basel"), participation.mixed) == (3, {"basel": 1})


def test_an_edge_that_flaps_for_ever_takes_no_memory() -> None:
    participation = Participation()
    participation.count(0, [], {"chur": "not connected"})
    for round in range(1, 4 * MOST_SPANS):
        reason = "deadline" if round % 4 else "silent"
        participation.count(round, [], {} if round % 2 else {"basel": reason})
    assert len(participation.missing) <= MOST_SPANS
    assert participation.missed("basel") == 2 * MOST_SPANS - 1
    assert participation.missed("chur") == 1
    restored = Participation.from_json(participation.as_json())
    assert restored == participation
    first, joined, *_, last = participation_text(restored.as_json()).splitlines()
    assert first == "chur was missing in round 0: not connected"
    assert joined == (
        f"basel was missing in {MOST_SPANS + 1} of rounds 2 to {2 * MOST_SPANS + 2}: several reasons"
    )
    assert last == f"basel was missing in round {4 * MOST_SPANS - 2}: deadline"
