"""`examples/train.py` as a module."""

import importlib.util

from tests.paths import REPOSITORY

spec = importlib.util.spec_from_file_location("train_example", REPOSITORY / "examples" / "train.py")
assert spec is not None
assert spec.loader is not None
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
