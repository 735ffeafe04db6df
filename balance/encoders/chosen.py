"""The configuration's encoder: its keys in, its description out, read completely and checked.

One place knows all kinds. A kind's libraries are imported when it is chosen.
"""

from __future__ import annotations

from pathlib import Path

from balance.encoders.base import Encoder
from balance.encoders.config import EncoderConfig, Kind
from balance.encoders.hear import read_hear
from balance.encoders.plugin import read_plugin
from balance.encoders.transformers import read_pretrained
from balance.encoders.vipant import read_vipant
from balance.errors import UserError


def read_encoder(config: EncoderConfig) -> Encoder:
    """Raises UserError: keys that are missing, a file or library that is not there, a model that cannot be read."""
    if config.kind is Kind.transformers:
        return read_pretrained(config)
    if config.kind is Kind.hear:
        return read_hear(config)
    if config.kind is Kind.plugin:
        return read_plugin(config)
    return read_vipant(_checkpoint_path(config), compile=config.compile)


def _checkpoint_path(config: EncoderConfig) -> Path:
    if config.checkpoint is None:
        raise UserError(
            "encoder.checkpoint is not given: type encoder.checkpoint=/path/to/00071478.pth (the README says where it "
            "is), or try dataset=demo"
        )
    return Path(config.checkpoint).expanduser()
