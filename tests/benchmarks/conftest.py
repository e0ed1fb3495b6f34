"""Makes the benchmarks folder importable, behind whatever is installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# At the end: an installed vqvae_fast, with its compiled kernels, goes before the source tree.
sys.path.append(str(ROOT))
