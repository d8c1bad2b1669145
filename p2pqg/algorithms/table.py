"""docs/algorithms.md from the code: ``python -m p2pqg.algorithms.table > docs/algorithms.md``.

State and traffic are measured on a program that runs, not declared.
"""

from __future__ import annotations

import inspect
from fractions import Fraction

import torch

from p2pqg.algorithms import ALGORITHMS, build, hyper_parameters
from p2pqg.algorithms.base import Algorithm
from p2pqg.algorithms.effects import Answer, Effect, Gradient, Mean, Mix, drive

INTRODUCTION = """\
# Algorithms

Every method is defined once, as a program for one round, and runs unchanged on a device and in the simulator
([how](architecture.md)). Choose one with `--algorithm NAME` or `[algorithm] name`; its hyper-parameters are
`--beta`, `--mu`, `--weight-decay` and `--local-steps`, and all others `--algorithm-option KEY=VALUE` or
`[algorithm.options]`. Names are those of the paper's tables, with the variant behind the method; the "ring"
of a variant is the graph that models are mixed on, whichever it is. Where the paper and its released code
differ, an option says so, and its default is what produced the paper's numbers.

- **Keeps**: vectors of the model's size that an agent keeps between rounds, beside the model. A counter is
  one number.
- **Sends**: vectors that an agent sends to each neighbour in a round, relative to DSGD. A *mean* is an exact
  average over all agents: what an exchange on the complete graph costs, or one with a server in the middle
  of a star. Only the simulator has it on other graphs; an agent refuses such a method there.
- **Needs**: what else must hold. A method that needs a symmetric W runs on any graph, but converges on
  static undirected ones only. One local step: `local_steps` cannot be set.

Quasi-global momentum without gradients, the average consensus of equation 4, is in
[results/report.md](results/report.md). Of the released code's three forms of quasi-global Adam, "v1" is left
out: it normalises filter by filter, and no result was made with it.

This page is made by `python -m p2pqg.algorithms.table`, and a test holds it to the code.
"""


def page() -> str:
    """The whole page."""
    rows = ["| name | keeps | sends | needs | source |", "|---|---|---|---|---|"]
    for name in ALGORITHMS:
        algorithm = build(name)
        cells = (f"`{name}`", kept(algorithm), sent(algorithm), needs(algorithm), algorithm.source)
        rows.append(f"| {' | '.join(cells)} |")
    by_class: dict[type[Algorithm], list[str]] = {}
    for name in ALGORITHMS:
        by_class.setdefault(type(build(name)), []).append(name)
    sections = [_section(kind, names) for kind, names in by_class.items()]
    return "\n".join([INTRODUCTION, *rows, "", *sections])


def kept(algorithm: Algorithm) -> str:
    """Vectors and counters of the state of one agent."""
    d = 3
    sizes = [tensor.shape[-1] for tensor in algorithm.init(torch.zeros(d)).values()]
    vectors = str(sizes.count(d))
    return f"{vectors}, a counter" if 1 in sizes else vectors


def sent(algorithm: Algorithm) -> str:
    """Vectors in exchanges and in exact averages, a round of one local step on average."""
    rounds: int = getattr(algorithm, "tau", 1)
    exchanged = {Mix: 0, Mean: 0}

    def answer(effect: Effect) -> Answer:
        if isinstance(effect, Gradient):
            return (torch.ones_like(effect.x),)
        exchanged[type(effect)] += len(effect.vectors)
        return effect.vectors

    x = torch.zeros(3)
    state = algorithm.init(x)
    for _ in range(rounds):
        x, state = drive(algorithm.round(x, state, (0.1,)), answer)
    mixed, averaged = (Fraction(exchanged[kind], rounds) for kind in (Mix, Mean))
    means = f"{averaged} mean" if averaged <= 1 else f"{averaged} means"
    return " + ".join(([str(mixed)] if mixed else []) + ([means] if averaged else []))


def needs(algorithm: Algorithm) -> str:
    """What a network must offer for the method to run, or to converge."""
    wanted = {
        "exact means": algorithm.needs_mean,
        "symmetric W": algorithm.needs_symmetric,
        "gradients on all own samples": algorithm.needs_full_gradient,
        "one local step": not algorithm.multi_step,
    }
    return ", ".join(what for what, is_needed in wanted.items() if is_needed) or "-"


def _section(kind: type[Algorithm], names: list[str]) -> str:
    """A class's documentation and the options of its methods."""
    common = {"weight_decay", "local_steps"}
    options = []
    for each in hyper_parameters(names[0]).values():
        if each.name not in common:
            choices = " or ".join(map(str, each.metadata["choices"]))
            allowed = f" ({choices})" if choices else ""
            options.append(f"- `{each.name}` = {_shown(each.default)}{allowed}: {each.metadata['doc']}")
    parts = [f"## {', '.join(names)}", inspect.cleandoc(kind.__doc__ or ""), "\n".join(options)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(default: object) -> str:
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


if __name__ == "__main__":
    print(page(), end="")
