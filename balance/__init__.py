"""Nearest-neighbour balancing of audio training sets: `python -m balance.run` is the main job."""

import os

# torch's OpenMP threads spin while they wait for one another. Decoder processes share the cores with them, and on busy
# cores that spinning takes two thirds of the speed. Read once, when torch is imported; a user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
