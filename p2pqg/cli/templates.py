"""The settings files that `init` and `network create` write: every key is there, with what it does.

A line that is commented out shows the default, or an example where there is none.
"""

from __future__ import annotations

import json

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
# data = "data"                   # where this site's data are
# batch_size = 32
"""

NETWORK = """\
# What all agents of the network have in common. Every site gets this file; agents whose values differ
# refuse each other and say which.

name = {name}
run = "1"                         # change it to start over
topology = {topology}             # ring, torus, complete, star, one-peer-exponential, one-peer-hypercube, ...
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


def agent_toml(name: str, listen: str) -> str:
    """The settings of one agent."""
    return AGENT.format(name=json.dumps(name), listen=json.dumps(listen))


def network_toml(name: str, *, topology: str, rounds: int, task: str, algorithm: str, lr: float) -> str:
    """The settings of a network."""
    quoted = {"name": name, "topology": topology, "task": task, "algorithm": algorithm}
    return NETWORK.format(rounds=rounds, lr=lr, **{key: json.dumps(value) for key, value in quoted.items()})


def member_toml(name: str, address: str) -> str:
    """One agent of a network's file."""
    return f"\n[[agents]]\nname = {json.dumps(name)}\naddress = {json.dumps(address)}\n"
