import ctypes
import gc
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `python -m pytest` adds it, and `nodes/` would hide the host's nodes.py
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "tools"))

from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

hide_broken_torchaudio()
load_pack()

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402


def keep_freed_memory() -> None:
    """Have glibc, here and in processes that tests start, hand freed memory out again instead of giving it back: to get
    and zero new pages for every large tensor takes a tenth of the time of the host tests.
    """
    mmap_threshold, trim_threshold = 1 << 28, 1 << 30  # bytes
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(mmap_threshold))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(trim_threshold))
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(-3, int(os.environ["MALLOC_MMAP_THRESHOLD_"]))  # M_MMAP_THRESHOLD
        mallopt(-1, int(os.environ["MALLOC_TRIM_THRESHOLD_"]))  # M_TRIM_THRESHOLD


keep_freed_memory()
# small models: a second thread mostly waits, badly so on a busy machine; so it does in processes that tests start
THREADS = os.environ.get("TROUPE_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
# how long an example takes is the machine's affair
settings.register_profile("troupe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("troupe")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several processes each takes whole files, for their fixtures are dear, and in their order, for those with a
    browser must come last.
    """
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_finish(session):
    """Let the garbage collector pass over what is there for good: millions of objects in a whole run, and ComfyUI asks
    for a full collection before each sampling.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_accelerator():
    """accelerate's state of this process is this test's alone: settings of another training would stay in it."""
    from support import tiny_training

    tiny_training.forget_accelerate()
    yield
    tiny_training.forget_accelerate()
