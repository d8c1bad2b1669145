"""The paper's comparisons over again: float64 numpy in matrix form, straight from the sources.

Shares no code with the package. A row of X is an agent; G(X, t, h) are the stochastic gradients of local step
h of round t, with coupled weight decay. Sources: Lin et al. 2021 with its appendix B, and where its released
code differs, the paper-protocol's section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from dense_reference import Array, Quadratics


class Run:
    """What every method is given: a start, gradients, mixing matrices and learning rates."""

    def __init__(
        self,
        problem: Quadratics,
        matrices: Sequence[Array],
        rates: Sequence[Sequence[float]],
        weight_decay: float = 0.0,
    ) -> None:
        self.problem, self.matrices, self.rates, self.weight_decay = problem, matrices, rates, weight_decay
        self.start = problem.start
        self.zero = np.zeros_like(problem.start)
        self.T = len(rates)

    def full(self, X: Array) -> Array:
        """Gradients without noise."""
        own = np.einsum("nij,nj->ni", self.problem.A, X - self.problem.b)
        return np.asarray(own + self.weight_decay * X)

    def G(self, X: Array, t: int, h: int = 0) -> Array:  # noqa: N802
        return self.full(X) + self.problem.noise(t, h)

    def W(self, t: int) -> Array:  # noqa: N802
        return self.matrices[t % len(self.matrices)]

    def eta(self, t: int) -> float:
        """The rate of a round of one step."""
        (eta,) = self.rates[t]
        return eta


def averaged(X: Array) -> Array:
    """Everyone's mean, for everyone."""
    return np.tile(X.mean(0), (len(X), 1))


def gradient_tracking(r: Run, beta: float = 0.0) -> Iterator[Array]:
    """y_0 = g_0, y_t = ybar + g_t - g_{t-1}; gossip the pair, then a Nesterov step along the unmixed y."""
    X, m = r.start, r.zero
    y_bar = G_before = r.zero
    for t in range(r.T):
        G = r.G(X, t)
        y = G if t == 0 else y_bar + G - G_before
        X, y_bar, G_before = r.W(t) @ X, r.W(t) @ y, G
        m = beta * m + y
        X = X - r.eta(t) * (y + beta * m)
        yield X


def d2(r: Run) -> Iterator[Array]:
    """Tang et al. 2018."""
    X, G = r.start, r.G(r.start, 0)
    X_before, G_before, X = X, G, r.W(0) @ (X - r.eta(0) * G)
    yield X
    for t in range(1, r.T):
        G = r.G(X, t)
        X, X_before = r.W(t) @ (2 * X - X_before - r.eta(t) * (G - G_before)), X
        G_before = G
        yield X


def d2_plus(r: Run) -> Iterator[Array]:
    """Footnote 9 of Lin et al. 2021."""
    X, G = r.start, r.G(r.start, 0)
    X_before, G_before, X = X, G, r.W(0) @ (X - r.eta(0) * G)
    yield X
    for t in range(1, r.T):
        G = r.G(X, t)
        step = (X_before - X) / r.eta(t - 1) + G - G_before
        X, X_before = r.W(t) @ (X - r.eta(t) * step), X
        G_before = G
        yield X


def dmsgd(r: Run, option: int, beta: float = 0.9, mu: float = 0.5) -> Iterator[Array]:
    """Algorithm 6; nothing has moved before the first round."""
    X = r.start
    X_before = V_before = r.start
    for t in range(r.T):
        V = r.W(t) @ X
        M = mu * (X - X_before) + (1 - mu) * (V - V_before)
        G = r.G(X, t)
        X_before, V_before = X, V
        X = (V if option == 1 else X) - r.eta(t) * G + beta * M
        yield X


def dmsgd_7(r: Run, option: int, beta: float = 0.9, mu: float = 0.5) -> Iterator[Array]:
    """Algorithm 7 with the factor 1 / eta that it lacks, for a constant rate and static W; the iterates are
    its x^(t+1/2)."""
    half = X = r.start
    M = r.zero
    for t in range(r.T):
        G = r.G(half, t)
        step = r.eta(t) * (beta * M + G)
        half_before, half = half, (X if option == 1 else half) - step
        X_before, X = X, r.W(t) @ half
        M = (mu * (half_before - half) + (1 - mu) * (X_before - X)) / r.eta(t)
        yield half


def buffer(
    r: Run, everywhere: bool, nesterov: bool, beta: float = 0.9, step_with: str = "mixed"
) -> Iterator[Array]:
    """The buffer is mixed with W, or everywhere, before the step that uses it, or after."""
    X, M = r.start, r.zero
    for t, etas in enumerate(r.rates):
        share: Callable[[Array], Array] = averaged if everywhere else r.W(t).__matmul__
        for h, eta in enumerate(etas):
            G = r.G(X, t, h)
            M = beta * M + G
            if step_with == "mixed":
                M = share(M)
            X = X - eta * (G + beta * M if nesterov else M)
        X = r.W(t) @ X
        if step_with == "own":
            M = share(M)
        yield X


def gradients_mixed(r: Run, beta: float = 0.9) -> Iterator[Array]:
    """DSGDm-N on gradients that neighbours averaged."""
    X, M = r.start, r.zero
    for t, etas in enumerate(r.rates):
        for h, eta in enumerate(etas):
            G = r.W(t) @ r.G(X, t, h)
            M = beta * M + G
            X = X - eta * (G + beta * M)
        X = r.W(t) @ X
        yield X


def slowmo(
    r: Run,
    beta: float = 0.9,
    tau: int = 12,
    slow_beta: float = 0.7,
    slow_lr: float = 1.0,
    form: str = "released",
) -> Iterator[Array]:
    """The released code's step, or Algorithm 5 with DSGDm-N as its base optimiser, whose buffers are kept."""
    X, M = r.start, r.zero
    Z, S = r.start, r.zero
    for t, etas in enumerate(r.rates):
        for h, eta in enumerate(etas):
            G = r.G(X, t, h)
            M = beta * M + G
            X = X - eta * (G + beta * M)
        X = r.W(t) @ X
        inner = t % tau  # k - 1 of Algorithm 5
        if (form == "released" and inner == 0) or (form == "printed" and inner == tau - 1):
            S = slow_beta * S + (Z - averaged(X)) / etas[-1]
            Z = Z - slow_lr * etas[-1] * S
            X = Z
        yield X


def qg_dsgdm(
    r: Run,
    nesterov: bool,
    beta: float = 0.9,
    mu: float | None = None,
    tau: int = 1,
    form: str = "released",
    single: bool = False,
) -> Iterator[Array]:
    """Algorithm 3 as printed, or with the mean displacement of the released code; `single` replaces the
    gossip by exact gradient averages."""
    mu = beta if mu is None else mu
    X, M, S = r.start, r.zero, r.zero
    for t, etas in enumerate(r.rates):
        X_before = X
        for h, eta in enumerate(etas):
            G = averaged(r.G(X, t, h)) if single else r.G(X, t, h)
            u = beta * M + G
            X = X - eta * (G + beta * u if nesterov else u)
        X = X if single else r.W(t) @ X
        D = (X_before - X) / sum(etas)
        S = S + D
        if form == "printed" and (t + 1) % tau == 0:  # Algorithm 3 counts from 1
            M = mu * M + (1 - mu) * D
        if form == "released" and t % tau == 0:
            M, S = mu * M + (1 - mu) * S / tau, r.zero
        yield X


def adam_step(m: Array, v: Array, t: int, beta1: float, beta2: float, eps: float) -> Array:
    """Kingma & Ba 2015, Algorithm 1, t from 0."""
    m_hat, v_hat = m / (1 - beta1 ** (t + 1)), v / (1 - beta2 ** (t + 1))
    return np.asarray(m_hat / (np.sqrt(v_hat) + eps))


def dadam(
    r: Run, central: bool = False, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Iterator[Array]:
    """Local Adam and gossip, or Adam on the mean gradient."""
    X, m, v, steps = r.start, r.zero, r.zero, 0
    for t, etas in enumerate(r.rates):
        for h, eta in enumerate(etas):
            G = averaged(r.G(X, t, h)) if central else r.G(X, t, h)
            m = beta1 * m + (1 - beta1) * G
            v = beta2 * v + (1 - beta2) * G**2
            X = X - eta * adam_step(m, v, steps, beta1, beta2, eps)
            steps += 1
        X = X if central else r.W(t) @ X
        yield X


def qg_dadam(
    r: Run, form: str = "released", beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Iterator[Array]:
    """Algorithm 2 as printed; the form used for Table 6; the released code's v2. One step in a round."""
    X, m_hat, v_hat, local = r.start, r.zero, r.zero, r.zero
    for t in range(r.T):
        G, eta = r.G(X, t), r.eta(t)
        v = beta2 * v_hat + (1 - beta2) * G * G
        if form == "printed":
            half = X - eta * (beta1 * m_hat + (1 - beta1) * G) / np.sqrt(v + eps)
        elif form == "released":
            half = X - eta * adam_step(beta1 * m_hat + G, v, t, beta1, beta2, eps)
        else:
            local = beta1 * local + (1 - beta1) * G
            half = X - eta * adam_step(local, v, t, beta1, beta2, eps)
        X_before, X = X, r.W(t) @ half
        D = X_before - X
        D = D / (np.linalg.norm(D, axis=1, keepdims=True) + (0 if form == "printed" else 1e-8))
        m_hat = beta1 * m_hat + (1 - beta1) * D
        v_hat = beta2 * v_hat + (1 - beta2) * D * D
        yield X


def mimelite(r: Run, beta: float = 0.9) -> Iterator[Array]:
    """Algorithm 4 with everyone in S: one x and one s, held by the server."""
    n = len(r.start)
    x, s = r.start[0], r.zero[0]
    for t, etas in enumerate(r.rates):
        Y = np.tile(x, (n, 1))
        for h, eta in enumerate(etas):
            Y = Y - eta * ((1 - beta) * r.G(Y, t, h) + beta * s)
        s = (1 - beta) * r.full(np.tile(x, (n, 1))).mean(0) + beta * s
        x = Y.mean(0)
        yield np.tile(x, (n, 1))


def qhm(r: Run, beta: float = 0.999, nu: float = 0.7) -> Iterator[Array]:
    """Ma & Yarats 2019, Algorithm 1, on the mean gradient."""
    X, g = r.start, r.zero
    for t, etas in enumerate(r.rates):
        for h, eta in enumerate(etas):
            G = averaged(r.G(X, t, h))
            g = beta * g + (1 - beta) * G
            X = X - eta * ((1 - nu) * G + nu * g)
        yield X
