"""The gossip protocol of one agent as pure state machines: no sockets, no clocks, no threads."""
