"""What grows, and how: with `--growth` everything around the embedding, from 0.5 to 10 million pool clips (`growth`).

`python benchmarks/scale.py --growth [SIZE …]`. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json

import growth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--growth", nargs="*", type=int, metavar="SIZE", required=True, help="pool sizes, in clips")
    given = parser.parse_args()
    print(json.dumps({"growth": growth.growth(tuple(given.growth) or growth.SIZES)}))


if __name__ == "__main__":
    main()
