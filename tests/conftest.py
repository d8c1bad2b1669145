"""Settings every test shares."""

from hypothesis import settings

# Time limits are pytest's: a deadline for each example only measures how busy the machine is.
settings.register_profile("p2pqg", deadline=None)
settings.load_profile("p2pqg")
