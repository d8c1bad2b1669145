"""Samples, modules and states on the device that computes."""

from __future__ import annotations

import pytest
import torch
from sample_tasks import normalised, quadratics, supervised

from p2pqg import algorithms, topology
from p2pqg.errors import ConfigError
from p2pqg.schedules import constant
from p2pqg_simulator import Iterate, Simulation
from p2pqg_simulator.placement import device_named, place


def trained(device: str, engine: str, module: str = "dense", rounds: int = 5) -> Iterate:
    modules = {"module": normalised} if module == "normalised" else {}
    tasks = supervised([12, 9, 12, 12], **modules)
    algorithm = algorithms.build("qg-dsgdm-n")
    run = Simulation(tasks, topology.build("ring", 4), algorithm, constant(0.1), engine=engine, device=device)
    return list(run.train(run.start(0), rounds))[-1]


def test_devices_that_are_not_there_are_named() -> None:
    for name in ("abacus", "meta:x", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ConfigError, match=f"device: expected a device of this machine, found {name}"):
            device_named(name)


def test_tasks_that_keep_their_data_to_themselves_stay_on_the_cpu() -> None:
    place(quadratics(2), torch.device("cpu"))
    with pytest.raises(ConfigError, match="device: meta expects tasks that are all SupervisedTask; use cpu"):
        place(quadratics(2), torch.device("meta"))


def test_a_shared_held_out_set_is_moved_once() -> None:
    tasks = supervised([4, 5, 6], module=normalised)
    place(tasks, torch.device("meta"))  # a device without memory: whatever stays behind shows
    assert len({id(task.test) for task in tasks}) == 1
    for task in tasks:
        tensors = [*task.train, *task.test, *task.module.parameters(), *task.buffers().values()]
        assert all(tensor.device.type == "meta" for tensor in tensors)


def test_modules_compute_in_one_place_with_parameters_of_their_own() -> None:
    tasks, alone = supervised([4, 5, 6]), supervised([4, 5, 6])
    place(tasks, torch.device("cpu"))
    firsts = {next(task.module.parameters()).untyped_storage().data_ptr() for task in tasks}
    assert len(firsts) == 1
    xs = [task.init(seed) for seed, task in enumerate(tasks)]
    for task, other, x in zip(tasks, alone, xs, strict=True):
        assert torch.equal(task.gradient(x, {}, 0).g, other.gradient(x, {}, 0).g)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    ("engine", "module"),
    [
        ("loop", "dense"),
        ("loop", "normalised"),
        ("vmap", "dense"),
        ("compile", "dense"),
        ("vmap-compile", "dense"),
    ],
)
def test_a_gpu_follows_the_cpu(engine: str, module: str) -> None:
    here, there = trained("cpu", "loop", module), trained("cuda", engine, module)
    assert there.x.device.type == "cuda"
    torch.testing.assert_close(there.x.cpu(), here.x, rtol=0, atol=1e-10)
    assert here.scores is not None
    assert there.scores is not None
    assert there.scores.averaged.loss == pytest.approx(here.scores.averaged.loss, rel=1e-9)
