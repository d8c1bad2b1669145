"""How an agent hears of others it has no address of."""

from p2pqg.discovery.base import Announcement, Discovery, Found

__all__ = ["Announcement", "Discovery", "Found"]
