"""The paper's experiments: what is asked, what is run, what is recorded and what is reported."""

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError, StorageError
from p2pqg_simulator import Iterate, Simulation, experiments
from p2pqg_simulator.columns import blocks_of
from p2pqg_simulator.experiments import recipes
from p2pqg_simulator.experiments.base import Plan, quiet
from p2pqg_simulator.experiments.program import SWARM, swarm, train
from p2pqg_simulator.experiments.published import published, table
from p2pqg_simulator.experiments.records import SHIPPED, Case, Record, Records, Result
from p2pqg_simulator.experiments.search import interior, next_runs
from p2pqg_simulator.experiments.training import Training, without
from p2pqg_simulator.report import render
from p2pqg_simulator.reproduce import report, reproduce, run

CELL: Case = next(row.cell for row in table("1") if row.cell["method"] == "qg-dsgdm-n")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random pictures in the place of CIFAR-10, and a small scale of 6 rounds."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, samples in (("train", 16 * 64), ("test", 20)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(samples) % 10
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "cifar10.npz", **arrays)
    small = recipes.Small("cnn", "vgg11-half", epochs=3, evaluations=2)
    monkeypatch.setitem(recipes.DATA_SETS, "cifar10", replace(recipes.DATA_SETS["cifar10"], small=small))
    return folder


@pytest.fixture
def plan(data: Path, tmp_path: Path) -> Plan:
    return Plan(scale="small", data=data, work=tmp_path / "work")


def cases(*lrs: float) -> list[Case]:
    return [{**CELL, "model": "cnn", "lr": lr, "seed": 0} for lr in lrs]


# ---- the paper's rows


def test_all_185_published_numbers_are_there() -> None:
    assert len(published()) == 185
    first = published()[0]
    assert (first.table, first.mean, first.std) == ("1", 92.95, 0.13)
    assert {row.table for row in published()} == {*"12345678", "fig13"}


def test_every_row_belongs_to_an_experiment_that_lists_it() -> None:
    listed = CliRunner().invoke(reproduce, ["list"], catch_exceptions=False).output
    names = {str(k): f"table{k}" for k in range(1, 9)} | {"fig13": "figure13"}
    for row in published():
        experiment = experiments.load(names[row.table])
        assert isinstance(experiment, Training)
        assert row.cell in experiment.cells
        text = ",".join(f"{key}={'' if value is None else value}" for key, value in row.cell.items())
        assert f"p2pqg reproduce {names[row.table]} --cell {text}\n" in listed


@pytest.mark.parametrize("row", published(), ids=lambda row: f"table {row.table} {row.cell['method']}")
def test_every_row_has_settings(row: object, tmp_path: Path) -> None:
    cell = row.cell  # type: ignore[attr-defined]
    for data_set in recipes.DATA_SETS.values():
        (tmp_path / data_set.files[0]).touch()
    chosen = recipes.settings({**cell, "lr": 0.1, "seed": 0}, Plan(data=tmp_path))
    chosen = recipes.timed(chosen, 50_000, Plan())
    assert chosen.graph.n == cell["n"] == chosen.agents
    assert chosen.algorithm.weight_decay == cell["weight_decay"]
    assert chosen.task.partition == ("iid" if cell["alpha"] is None else "dirichlet")
    assert chosen.algorithm.build().centralised == (cell["topology"] in ("centralized", "single"))


def test_the_full_scale_is_the_paper_s(tmp_path: Path) -> None:
    (tmp_path / "cifar10").touch()
    plan = Plan(data=tmp_path)
    chosen = recipes.timed(recipes.settings({**CELL, "lr": 0.8, "seed": 0}, plan), 50_000, plan)
    assert (chosen.rounds, chosen.eval_every, chosen.task.batch_size) == (29_400, 98, 32)
    schedule = chosen.schedule.build()
    trace = {0: 0.1, 98: 0.24, 490: 0.8, 14_700: 0.08, 22_050: 0.008}  # paper-protocol, section 5
    for step, lr in trace.items():
        assert schedule(step) == pytest.approx(lr)


# ---- the search


@given(peak=st.integers(-6, 6), seeds=st.integers(1, 4))
def test_the_search_ends_at_the_peak_with_neighbours_tried(peak: int, seeds: int) -> None:
    done: dict[tuple[float, int], float] = {}
    while runs := next_runs((0.5, 1.0, 2.0), seeds, done):
        assert not set(runs) & set(done)
        done |= {(lr, seed): -abs(np.log2(lr) - peak) for lr, seed in runs}
    assert {lr for lr, seed in done if seed == seeds - 1} >= {2.0**peak}
    assert interior(done)


def test_a_rate_that_diverges_is_worse_than_any_other() -> None:
    scores = {1.0: -np.inf, 0.5: -np.inf, 0.25: 0.3, 0.125: 0.2}
    done = {(lr, 0): scores[lr] for lr in (0.25, 0.5, 1.0)}
    assert next_runs((0.25, 0.5, 1.0), 2, done) == [(0.125, 0)]
    assert next_runs((0.25, 0.5, 1.0), 2, done | {(0.125, 0): 0.2}) == [(0.25, 1)]


def test_a_search_in_which_all_diverges_goes_down_and_ends() -> None:
    done: dict[tuple[float, int], float] = {}
    while runs := next_runs((0.5, 1.0, 2.0), 3, done):
        done |= dict.fromkeys(runs, -np.inf)
    assert 5 <= len(done) <= 12


def test_a_given_grid_is_run_for_every_seed() -> None:
    assert next_runs((1.0,), 2, {(0.1, 0): 0.5}, grid=(0.1, 0.3)) == [(0.3, 0), (0.1, 1), (0.3, 1)]


# ---- records


def record(case: Case, **result: object) -> Record:
    return Record("training", "small", case, result, {"wall_s": 1.0})


def test_records_are_found_again(tmp_path: Path) -> None:
    records = Records(tmp_path, "training")
    for lr in (0.1, 0.2, 0.1):
        records.append(record({"lr": lr}, best=lr))
    again = Records(tmp_path, "training")
    assert [r.case["lr"] for r in again] == [0.1, 0.2]
    assert again.find({"lr": 0.2}, "small") is not None
    assert again.find({"lr": 0.2}, "full") is None


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    records = Records(tmp_path, "training")
    records.append(record({"lr": 0.1}))
    whole = records.path.read_bytes()
    records.path.write_bytes(whole + whole[: len(whole) // 2])
    records = Records(tmp_path, "training")
    assert len(records) == 1
    records.append(record({"lr": 0.2}))
    assert [r.case["lr"] for r in Records(tmp_path, "training")] == [0.1, 0.2]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(StorageError, match="line 1: expected a record"):
        Records(tmp_path, "training")


# ---- training


def test_an_interrupted_program_goes_on_to_the_same_result(plan: Plan) -> None:
    together = cases(0.05, 0.1)
    expected = list(train(plan, together))

    def interrupt(cases: Sequence[Case], done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train(plan, together, interrupt))
    assert list(train(plan, together)) == expected
    assert not list(plan.work.iterdir())
    assert [len(result["curve"]) for _, result in expected] == [2, 2]


def test_ctrl_c_while_a_round_is_measured_loses_no_point(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pqg_simulator.engine.blocks", lambda n, d, *_: blocks_of(d // 3, d))
    expected = list(train(plan, cases(0.1)))
    scored = Simulation.scored

    def interrupted(self: Simulation, iterate: Iterate) -> Iterate:
        signal.raise_signal(signal.SIGINT)
        return scored(self, iterate)

    with monkeypatch.context() as patched:
        patched.setattr(Simulation, "scored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(train(plan, cases(0.1)))
    assert list(train(plan, cases(0.1))) == expected


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(plan: Plan) -> None:
    results = {case["lr"]: result for case, result in train(plan, cases(0.1, 1e30))}
    assert results[1e30]["diverged"]["round"] <= 3
    assert results[0.1]["diverged"] is None
    assert results[0.1]["rounds"] == 6
    ((_, alone),) = train(plan, cases(0.1))
    assert results[0.1]["last"]["mean_accuracy"] == pytest.approx(alone["last"]["mean_accuracy"], abs=0.02)


def test_finished_cells_are_not_run_again(plan: Plan, tmp_path: Path) -> None:
    experiment = experiments.load("table1")
    plan = replace(plan, cell={"method": "dsgd", "topology": "ring", "alpha": "1"}, lr_grid=(0.1,), seeds=1)
    first = list(run(experiment, plan, Records(tmp_path, "training"), quiet))
    assert [r.case["seed"] for r in first] == [0]
    assert {"source", "commit", "dirty", "hardware", "versions", "wall_s", "cpu_s"} <= first[0].made.keys()
    assert list(run(experiment, plan, Records(tmp_path, "training"), quiet)) == []
    other = experiments.load("figure17")  # the same cells, stood in for by the same model
    assert list(run(other, plan, Records(tmp_path, "training"), quiet)) == []


# ---- real agents


def assert_same_curve(real: Result, matrix: Result) -> None:
    """What a point of both curves has is equal in every digit, and at the end that is everything but the
    models' norm."""
    for there, here in zip(real["curve"], matrix["curve"], strict=True):
        assert there == {key: here[key] for key in there}
    assert {*matrix["last"]} - {*real["last"]} == {"norm"}
    assert real["best"] == {key: matrix["best"][key] for key in real["best"]}
    assert not real["missing"]


@pytest.mark.slow
def test_real_agents_train_a_cell_as_the_simulator_does(plan: Plan) -> None:
    case = {**CELL, "n": 4, "topology": "ring", "model": "cnn", "lr": 0.1, "seed": 0}
    [(_, matrix)] = train(replace(plan, engine="loop"), [case])
    assert_same_curve(swarm(plan, case), matrix)


def test_the_shipped_swarms_are_the_shipped_simulations() -> None:
    shipped = Records(SHIPPED, "training")
    swarms = [record for record in shipped if record.case.get("engine") == SWARM]
    assert swarms
    for record in swarms:
        twin = shipped.find(without(record.case, ("engine",)), record.scale)
        assert twin is not None
        assert_same_curve(record.result, twin.result)


# ---- commands


def test_a_cell_is_trained_and_reported(data: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "records", tmp_path / "report"
    cell = "method=qg-dsgdm-n,topology=ring,n=16,alpha=0.1,model=vgg11-half"
    arguments = ["table1", "--scale", "small", "--cell", cell, "--seeds", "2", "--lr-grid", "0.1"]
    done = CliRunner().invoke(reproduce, [*arguments, "--data", str(data), "--out", str(out)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["case"]["model"] for line in lines] == ["cnn", "cnn"]
    assert lines[0]["result"]["settings"]["task"]["data"] == "cifar10.npz"
    assert CliRunner().invoke(report, ["table1", "--records", str(out), "--out", str(page)]).exit_code == 0
    text = (page / "report.md").read_text()
    best = [100 * line["result"]["best"]["mean_accuracy"] for line in lines]
    assert f"{np.mean(best):.2f} ± {np.std(best, ddof=1):.2f}" in text
    assert "Small scale" in text


def test_the_difference_is_in_published_standard_deviations(tmp_path: Path) -> None:
    cell = next(row.cell for row in table("1") if row.mean == 82.2)
    records = Records(tmp_path, "training")
    for seed, accuracy in enumerate((0.83, 0.84, 0.85)):
        scores = {"mean_accuracy": accuracy, "worst_accuracy": accuracy, "averaged_accuracy": accuracy}
        result = {"diverged": None, "best": scores, "last": scores, "settings": {"task": {"data": None}}}
        made = {"wall_s": 1.0}
        records.append(Record("training", "full", {**cell, "lr": 0.1, "seed": seed}, result, made))
    text = render(["table1"], tmp_path, tmp_path / "out").read_text()
    assert "82.20 ± 1.27 | +1.4 | 84.00 ± 1.00" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table9"], "expected one of table1"),
        (["table1", "--cell", "method=sgd"], "expected the values of a row of the paper"),
        (["table1", "--cell", "method"], "expected KEY=VALUE"),
        (["table1", "--lr-grid", "0.1,fast"], "expected auto or positive numbers"),
        (["table1", "--data", "nowhere"], "nowhere: data: expected the data set cifar10 as"),
        (["table3", "--scale", "small"], "expected full or smoke for imagenet"),
        (["table1", "--device", "cuda:99"], "expected a device of this machine"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(reproduce, [*arguments, "--out", str(tmp_path / "records")])
    assert isinstance(done.exception, ConfigError)
    assert expected in str(done.exception)
    assert not (tmp_path / "records").exists()


def test_a_report_without_records_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected records of table1, found none"):
        render(["table1"], tmp_path, tmp_path / "out")
