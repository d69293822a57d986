"""The examples' own modules, as a user's `python examples/train_head/...` finds them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "train_head"))
