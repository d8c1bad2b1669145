"""Simulate many agents on one host; imports `p2pqg`, which never imports this."""
