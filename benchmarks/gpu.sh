#!/usr/bin/env bash
# On a machine with one CUDA GPU: the tests that need one, then the measurements that need one. Under 8 minutes.
#
#   bash benchmarks/gpu.sh            # PYTHON=/path/to/python for another interpreter than .venv's or python3
#
# No network. Needs torch with CUDA, numpy, scipy, pyarrow and pytest, in any recent version. A bare machine also needs
# these wheels, carried there (pip wheel --no-deps NAME): soundfile cffi pycparser soxr (decoding), omegaconf hydra-core
# antlr4-python3-runtime PyYAML (the configuration inside checkpoints), tqdm. FAISS for GPUs is measured if it is there.
# Each step prints its figures as it has them, the last line of each is one JSON object, and torch.compile, which may
# take minutes, comes last. Exit status 1 if anything failed or an id was wrong.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD
failed=0

"$PYTHON" - <<'PROBE' || exit 1
import importlib, sys
missing = []
for name in ("torch", "numpy", "scipy", "pyarrow", "pytest"):
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name)
if missing:
    sys.exit(f"gpu.sh: {sys.executable} lacks {', '.join(missing)}: choose another with PYTHON=…")
import torch
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} sees no CUDA device")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
PROBE

# -c /dev/null: our pytest settings name plugins that may not be there. A process per file: one broken import, or a
# device that one test has left unusable, does not take the others with it.
for tests in tests/*/test_*_cuda.py; do
    timeout 90 "$PYTHON" -m pytest -c /dev/null --rootdir . -p no:cacheprovider -q "$tests" || failed=1
done
timeout 150 "$PYTHON" benchmarks/neighbours.py --gpu || failed=1
timeout 150 "$PYTHON" benchmarks/embed.py --gpu || failed=1
timeout 170 "$PYTHON" benchmarks/embed.py --gpu --compiled || failed=1
exit $failed
