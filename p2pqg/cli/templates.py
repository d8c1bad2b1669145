"""The settings files that `init` and `network create` write: the keys that most need, with what they do.

A line that is commented out shows the default, or an example where there is none.
"""

from __future__ import annotations

import json
from pathlib import Path

AGENT = """\
# What this device does. What all agents have in common stands in network.toml;
# a value set here has the last word.

[agent]
name = {name}
listen = {listen}            # where this agent accepts connections; port 0 takes any
home = "."                        # checkpoints, metrics.jsonl, audit.jsonl, the final model
# wire = "float32"                # "float16" halves the bytes on the wire
# round_timeout_s = 60.0          # how long a round waits for a connected but silent neighbour
# start_timeout_s = 120.0         # how long the first round waits for neighbours
# checkpoint_every = 100          # rounds; 0 writes one at the end only
# threads = 1                     # that torch may use for one operation

[network]
file = "network.toml"             # from the network's operator: `p2pqg install PACKAGE`

[tls]                             # without it: loopback only, or `p2pqg join --insecure`
certificate = "agent.pem"
private_key = "agent.key"
authority = "authority.pem"
revoked = "revoked.pem"           # read again whenever it changes
# allow = ["basel"]               # names or key fingerprints to let in; all of the network unless set

[telemetry]
# prometheus = "127.0.0.1:9464"   # serve metrics there; off unless set
# web = "127.0.0.1:8080"          # a page to watch the agent on; off unless set

[task]
{data}# batch_size = 32
# precision = "float32"           # or "bfloat16", and "tf32" on a GPU: of gradients and scores only

# [privacy]                       # differential privacy of this site's records, see docs/privacy.md
# dp = true                       # needs Opacus: pip install 'p2pqg[privacy]'
# target_epsilon = 3.0            # the budget: training stops when it is spent
# target_delta = 1e-5
# rounds = 600                    # that the budget is to last; all rounds unless set
# max_grad_norm = 1.0             # that the gradient of one record is clipped to
# accountant = "prv"              # or "rdp": faster, a tenth more epsilon
"""

NETWORK = """\
# What all agents of the network have in common. Every site gets this file; agents whose values differ
# refuse each other and say which.

name = {name}
run = "1"                         # change it to start over
topology = {topology}             # ring, torus, 4-regular, exponential, complete, star, ...
membership = {membership}         # the graph is over all agents ("fixed") or over whoever is alive ("alive")
rounds = {rounds}
# seed = 0
# eval_every = 0                  # rounds between evaluations; 0 evaluates at the end only

[task]
name = {task}                     # a ready-made one, or "file.py:factory" beside each site's agent.toml
# weighting = "uniform"           # or "samples": agents count by the number of their samples
# dtype = "float32"

[algorithm]
name = {algorithm}
# beta = 0.9
# weight_decay = 0.0
# local_steps = 1

[schedule]
lr = {lr}
# warmup_steps = 0
# milestones = []
# decay = 0.1

[privacy]                         # docs/privacy.md
# secure_sums = false             # true: agents learn only the sum of what their neighbours send
# min_senders = 2                 # neighbours that such a sum takes at least

[finish]                          # gossip without training at the end, until all hold the same model
# tolerance = 1e-3
# max_rounds = 200

# The agents; `p2pqg network sign --address` adds one.
"""


def agent_toml(name: str, listen: str, data: Path | None = None) -> str:
    """The settings of one agent."""
    where = (
        '# data = "data"                   # where'
        if data is None
        else (f"data = {json.dumps(str(data.absolute()))}  # where")
    )
    return AGENT.format(
        name=json.dumps(name), listen=json.dumps(listen), data=f"{where} this site's data are\n"
    )


def network_toml(name: str, *, rounds: int, lr: float, **names: str) -> str:
    """The settings of a network; `names` are its topology, membership, task and algorithm."""
    quoted = {key: json.dumps(value) for key, value in {"name": name, **names}.items()}
    return NETWORK.format(rounds=rounds, lr=lr, **quoted)


def member_toml(name: str, address: str) -> str:
    """One agent of a network's file."""
    return f"\n[[agents]]\nname = {json.dumps(name)}\naddress = {json.dumps(address)}\n"
