"""Attacks on one agent by a neighbour that sees what the wire carries: `p2pqg audit`.

The attacker is honest but curious: it takes part, remembers what it is sent, and knows what every agent of a
network knows (algorithm, schedule, seed, graph, initial model). What it sees of a victim is a `view`: the
victim's own messages, or, with secure sums, only the weighted sum over all of its own neighbours. It answers
two questions:

* `membership`: was this record among the victim's? By likelihood ratio against reference networks.
* `inversion`: what did the records look like? By matching the gradient that two successive models show.

Where an attacker's knowledge had to be chosen, it has been given more rather than less, so that a failure of
the attack says something: it knows the labels of what it reconstructs, and trains reference networks on data
like the others'. A stronger attack may still exist; only differential privacy bounds them all.

This has nothing to do with the agents' audit log (`p2pqg.telemetry.audit`), which says what they did.
"""
