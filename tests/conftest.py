import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]  # `python -m pytest` adds it, and `nodes/` would hide the host's nodes.py

import torch  # noqa: E402
from loading import load_pack  # noqa: E402

load_pack()
torch.set_num_threads(int(os.environ.get("TROUPE_TEST_THREADS", "2")))
