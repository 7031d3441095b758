"""Measure what references cost in a sampling step, on a real ComfyUI, and write the results page.

    python benchmarks/run.py --base sd15-thin --pixels 256 [--ipadapter-plus DIR] [--pairs 30] [--runs "relevance 2x4"
    ...]

Each call measures one base at one size and puts its table into results.json beside this script, in place of an older
one of the same base, size, dtype, device and number of pairs; RESULTS.md is written anew from all of them, and the
README's sentence with it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE.parent]
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
sys.path.append(str(HERE.parent / "tools"))

from runs import (  # noqa: E402
    DECIDING,
    GATED,
    OURS,
    SUBJECTS,
    THEIRS,
    couples,
    paired_with_rival,
    pairs_of_growth,
    rival_of,
    subjects_of,
)
from troupe_tools.engine.comfyui import find_comfyui  # noqa: E402
from troupe_tools.errors import RunError  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description="Measure what references cost in a sampling step, on a real ComfyUI.")
    parser.add_argument("--base", default="sd15-thin", help="a model of bases.py (default sd15-thin)")
    parser.add_argument("--pixels", type=int, default=256, help="side of the picture (default 256)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument(
        "--pairs", type=int, default=30, help="rounds; each times every run once beside text alone (default 30)"
    )
    parser.add_argument("--ipadapter-plus", type=Path, help="a checkout of ComfyUI_IPAdapter_plus to compare with")
    parser.add_argument("--runs", nargs="+", help="measure these alone, such as 'relevance 2x4'")
    parser.add_argument(
        "--fusers", action="store_true", help="measure the gated layers alone, in the published form and ours"
    )
    parser.add_argument(
        "--encode", action="store_true", help="measure the encoding of photos with a full-size image encoder"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a CPU (default: all)")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md (default: this one)"
    )
    given = parser.parse_args()
    try:
        begin_host(given.threads)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    from page import readme_sentence, write_page
    from troupe_tools.dev.markdown_pages import write_passage

    if given.fusers:
        table = measure_fusers(given.pixels, given.dtype, given.pairs)
    elif given.encode:
        table = measure_encode(given.dtype, given.ipadapter_plus)
    else:
        runs = given.runs or (paired_with_rival(OURS, THEIRS) if given.ipadapter_plus else OURS) + GATED
        table = measure_base(given.base, given.pixels, given.dtype, runs, given.pairs, given.ipadapter_plus)
    given.out.mkdir(parents=True, exist_ok=True)
    keep(table, given.out / "results.json")
    write_page(given.out / "results.json", given.out / "RESULTS.md")
    if given.out.resolve() == HERE:
        results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
        write_passage(HERE.parent / "README.md", "speed", readme_sentence(results))
    return 0


def begin_host(threads: int | None) -> None:
    """Load the host's modules, on the CPU if there is no GPU. Raises RunError if no host is found."""
    host = find_comfyui()
    if host is None:
        raise RunError(
            "No ComfyUI was found, and times on anything else would say nothing. Set COMFYUI_PATH to its folder."
        )
    sys.path.insert(0, str(host))
    hide_broken_torchaudio()
    import torch

    sys.argv[1:] = [] if torch.cuda.is_available() else ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    load_pack()
    torch.set_num_threads(threads or 1)


def measure_base(name: str, pixels: int, dtype: str, runs: list[str], pairs: int, rival: Path | None) -> dict[str, Any]:
    """Return the table of one base at one size, as stored in results.json."""
    import torch
    from bases import base
    from contenders import Contenders
    from intervals import interval
    from live import first_step, hold
    from measure import TEXT, counts, growth, kept_by, machine_rates, ratios, rounds, text_seconds, timed
    from theory import COUNTED, added

    patcher, number = base(name, getattr(torch, dtype)), getattr(torch, dtype)
    latent = (1, 4, pixels // 8, pixels // 8)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        contenders = Contenders(patcher, number, Path(folder), rival)
        wired = {run: contenders.wired(run) for run in [TEXT, *runs]}
        held = {run: bytes_held(Contenders(patcher, number, Path(folder) / "anew", rival), run) for run in wired}
        firsts = {run: min(timed(lambda run=run: first_step(wired[run], latent)) for _ in range(2)) for run in wired}

        def measure(steps: dict[str, Any]) -> None:
            found = rounds(steps, couples(runs), pairs, say, [run for run in DECIDING if rival_of(run) in runs])
            rows[TEXT] = {"seconds": interval(text_seconds(found)).as_dict()}
            for run in runs:
                rows[run] = {
                    "ratio": interval(ratios(found, run)).as_dict(),
                    "seconds": interval([times[run][1] for times in found if run in times]).as_dict(),
                }
            for run in runs:
                if (theirs := rival_of(run)) in runs and theirs != run:
                    rows[run]["beyond_half"] = interval(
                        [a - 1 - (b - 1) / 2 for a, b in zip(ratios(found, run), ratios(found, theirs), strict=True)]
                    ).as_dict()
            for few, many in pairs_of_growth(runs):
                rows[many].setdefault("growth", {})[few] = interval(
                    growth(found, few, many, subjects_of(many) - subjects_of(few))
                ).as_dict()
            for run in steps:
                say(f"counting {run}")
                rows[run]["counts"] = vars(counts(steps[run])) | {"kept": kept_by(steps[run])}

        hold(wired, latent, measure)
        flops, copied = machine_rates(number, patcher.load_device)
        for run in rows:
            rows[run] |= {"first": firsts[run], "held": held[run]}
            if run.startswith(COUNTED):
                rows[run]["theory"] = vars(added(contenders.blocks, latent, run, number.itemsize))
    what = {"kind": "steps", "base": name, "pixels": pixels, "dtype": dtype, "pairs": pairs, "orders": "all"}
    return {**what, "machine": machine(), "rates": {"flops": flops, "bytes": copied}, "rows": rows}


def measure_fusers(pixels: int, dtype: str, pairs: int) -> dict[str, Any]:
    """Return the table of the gated layers, for two subjects of Subject-Diffusion (256 tokens each) and for GLIGEN's 30
    text-image slots.
    """
    import torch
    from comfy.model_management import get_torch_device
    from fusers import GLIGEN, SUBJECT_DIFFUSION, speedup

    with torch.inference_mode():
        rows = [
            speedup(pixels, tokens, pairs, getattr(torch, dtype), get_torch_device())
            for tokens in (SUBJECT_DIFFUSION, GLIGEN)
        ]
    return {"kind": "fusers", "pixels": pixels, "dtype": dtype, "pairs": pairs, "machine": machine(), "rows": rows}


def measure_encode(dtype: str, rival: Path | None) -> dict[str, Any]:
    """Return the table of encoding photos with a full-size CLIP ViT-H and a plain adapter, by Encode Subject References
    and by the other pack's Apply nodes.
    """
    import torch
    from encode import ENCODER, encoding_seconds

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        found = encoding_seconds(SUBJECTS, getattr(torch, dtype), Path(folder), rival)
    return {
        "kind": "encode",
        "dtype": dtype,
        "encoder": ENCODER,
        "photos": list(SUBJECTS),
        "machine": machine(),
        "seconds": found,
    }


def bytes_held(contenders: Any, run: str) -> int:
    """Return the bytes of the tensors that a newly wired run keeps: adapter weights and the subjects' tokens."""
    from measure import tensor_bytes

    before = tensor_bytes()
    wired = contenders.wired(run)
    contenders.forget()
    held = tensor_bytes() - before
    del wired
    return held


def machine() -> dict[str, Any]:
    """Return the hardware, the software versions and the date of the measurement."""
    import comfyui_version
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or f"CPU, {torch.get_num_threads()} threads",
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "comfyui": comfyui_version.__version__,
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """Return the name of the processor as the system reports it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )


def keep(table: dict[str, Any], file: Path) -> None:
    """Put a table into the results, in place of an older one of the same base, size, dtype, device and number
    of pairs.
    """
    tables = json.loads(file.read_text()) if file.exists() else []

    def place(t: dict[str, Any]) -> tuple:
        return (
            *(t.get(key, "") for key in ("kind", "base", "pixels", "dtype")),
            t["machine"]["device"],
            t.get("pairs", ""),
        )

    tables = [t for t in tables if place(t) != place(table)] + [table]
    tables.sort(key=lambda t: [str(part) for part in place(t)], reverse=True)
    file.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
