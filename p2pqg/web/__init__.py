"""The page on which an agent can be watched."""
