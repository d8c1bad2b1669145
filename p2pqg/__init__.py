"""Train one neural network across devices that never share their data, without a server."""

__version__ = "0.1.0"
