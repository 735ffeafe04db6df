"""Nearest-neighbour balancing of audio training sets: `python -m balance.run` is the main job."""

__version__ = "0.2.0"
