"""Four clips in VIP-ANT's layout, with what a training loader must get right: frames, an empty dir, two suffixes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

CLIPS = [  # id, dir, suffix, rate, frames, labels
    (
        "--PJHxphWEs",
        "all_0_2",
        "wav",
        16_000,
        ["p0.4_0.jpg", "p0.4_1.jpg", "p0.4_2.jpg", "p0.4_3.jpg"],
        ["/m/b", "/m/a"],
    ),
    ("a_b-c_d-e_f", "all_0_2", "flac", 8_000, "p0.1_0.jpg", ["/m/a"]),
    ("zzzzzzzzzzz", "", "wav", 16_000, [], ["/m/c"]),
    ("0123456789_", "all_2_4", "flac", 16_000, ["p0.1_0.jpg"], ["/m/b"]),
]


def write(root: Path) -> Path:
    """The four clips and their index `src_X.csv` in the folder `root`."""
    rng = np.random.default_rng(1)
    with_lines = []
    for number, (id, chunk, suffix, rate, frames, labels) in enumerate(CLIPS):
        folder = root / chunk / "aclip"
        folder.mkdir(parents=True, exist_ok=True)
        samples = rng.uniform(-0.5, 0.5, (rate + 100 * number, 2))
        soundfile.write(folder / f"{id}.p0.{suffix}", samples, rate)
        record = {"id": id, "dir": chunk, "aclip": [f"p0.{suffix}"], "frame": frames, "labels": labels}
        with_lines.append(json.dumps(record) + "\n")
    (root / "src_X.csv").write_text("".join(with_lines))
    return root
