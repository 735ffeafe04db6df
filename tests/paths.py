"""Where tests find the repository's own folders and, beside it, the shared data."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
VIPANT = REPOSITORY / "tests" / "fixtures" / "vipant"  # the published code's checkpoints, clips and figures
