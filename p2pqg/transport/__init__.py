"""Connections between agents: the contract, gRPC, and an in-memory network with seeded faults."""
