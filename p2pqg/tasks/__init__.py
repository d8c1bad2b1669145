"""Learning problems: the contract, ready-made tasks, and how data is shared out among agents."""
