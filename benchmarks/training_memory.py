"""Computes docs/training_hardware.md: memory, operations and settings of the recipes for published models.

usage: python benchmarks/training_memory.py [NAME ...] [--page]

Counts the passes of the files in training/recipes for SD1.5, SD2 and SDXL, of all or of those named, on tensors that
have sizes and no numbers: no weights and no GPU are needed, and nothing is measured. It takes about an hour on one slow
core. The numbers go to training_passes.json after each pass, and what is there is not counted again unless it is named.
--page only writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]
NUMBERS = HERE / "training_passes.json"
BATCHES = (1, 4)
RESOLUTIONS = {"SD1.5": (512,), "SD2": (512,), "SDXL": (512, 1024)}
Numbers = dict[str, dict[str, Any]]


def sizes(made: Any) -> dict[str, Any]:
    """Return the sizes of a `training_models.Training`: trained weights, bytes of frozen models, and of those that stay
    on the GPU with `cache = true`, where encoding needs `encoding` bytes before.
    """
    from troupe.training.caching import unneeded_encoders
    from troupe.training.memory import memory_of

    trainee, training = made.trainee, made.config.training
    modules, encoders = trainee.base.modules, unneeded_encoders(trainee, sheets=True)
    resident = [module for module in modules if module not in encoders]
    parameters = {id(p): p for m in modules if m is not trainee.base.unet for p in m.parameters()}
    return {
        "base": made.base,
        "trained": sum(p.numel() for p in trainee.parameters() if p.requires_grad),
        "frozen": memory_of(trainee, modules, training).frozen,
        "resident": memory_of(trainee, resident, training).frozen,
        "encoding": sum(p.numel() * p.element_size() for p in parameters.values()),
    }


def features(made: Any, resolution: int) -> dict[str, int]:
    """Return what the frozen encoders compute for one picture: bytes of their results (kept), peak, and operations of
    the VAE and of the others; and the peak of a sheet's picture in the VAE's decoder.
    """
    import torch
    from training_models import NAMES, batch_of, encode_all
    from training_passes import count_without_gradients

    asked = made.features
    asked.forget()
    batch_of(made, 1, resolution)
    kept = asked.kept(min(len(NAMES), made.config.data.subjects))
    with made.mode:
        peak, vae = count_without_gradients(encode_all(made.trainee, asked.asked, only=True))
        other, encoders = count_without_gradients(encode_all(made.trainee, asked.asked, only=False))
        base, side = made.trainee.base, resolution // made.trainee.base.cell
        decode, _ = count_without_gradients(lambda: base.decode(torch.zeros(1, 4, side, side)))
    return {"kept": kept, "peak": max(peak, other), "vae": vae, "encoders": encoders, "decode": decode}


def a_pass(made: Any, resolution: int, batch: int, checkpointing: bool) -> tuple[Any, list[Any]]:
    """Return what computes the loss of a batch, and every parameter that it uses."""
    from training_models import batch_of, loss_of

    trainee = made.trainee
    if checkpointing:
        trainee.base.unet.enable_gradient_checkpointing()
    else:
        trainee.base.unet.disable_gradient_checkpointing()
    given = batch_of(made, batch, resolution)
    parameters = {id(p): p for module in (trainee, *trainee.base.modules) for p in module.parameters()}
    return loss_of(trainee, given), list(parameters.values())


def pass_memory(made: Any, resolution: int, batch: int, checkpointing: bool) -> dict[str, int]:
    """Return the bytes of one pass in bfloat16, see `training_passes.Memory`."""
    import torch
    from training_passes import count_memory

    forward, parameters = a_pass(made, resolution, batch, checkpointing)
    with made.mode:
        return vars(count_memory(forward, parameters, torch.bfloat16))


def pass_operations(made: Any, resolution: int, checkpointing: bool) -> dict[str, int]:
    """Return the floating point operations of one picture's pass."""
    import torch
    from training_passes import count_operations

    compute, _ = a_pass(made, resolution, 1, checkpointing)
    with made.mode:
        forward, backward = count_operations(compute, torch.bfloat16)
    return {"forward": forward, "backward": backward}


def count_recipe(name: str, numbers: Numbers) -> None:
    """Count everything about one file in training/recipes that is not in `numbers` yet, and save it."""
    from training_models import training

    made = training(name)
    for key, value in sizes(made).items():
        found = numbers.setdefault(name, {})
        found[key] = value
    for resolution in RESOLUTIONS[made.base]:
        entry = found.setdefault(str(resolution), {})
        if "decode" not in entry.get("features", {}):
            entry["features"] = features(made, resolution)
        for checkpointing in (False, True):
            kind = entry.setdefault("checkpointing" if checkpointing else "plain", {})
            if "operations" not in kind:
                kind["operations"] = pass_operations(made, resolution, checkpointing)
            for batch in map(str, BATCHES):
                if batch not in kind:
                    kind[batch] = pass_memory(made, resolution, int(batch), checkpointing)
                    save_counts(numbers)
            print(name, resolution, kind, flush=True)


def read_counts() -> Numbers:
    """Return the numbers that are counted already."""
    return json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}


def save_counts(numbers: Numbers) -> None:
    """Write the numbers."""
    ordered = {name: numbers[name] for name in sorted(numbers)}
    NUMBERS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Count what is missing or named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files in training/recipes without .toml, to be counted again")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args(arguments)
    from troupe_tools.pack import load_pack

    load_pack()
    from training_models import recipe_files
    from training_tables import write_page

    numbers = read_counts()
    for name in options.names:
        numbers.pop(name, None)
    for name in () if options.page else options.names or recipe_files():
        count_recipe(name, numbers)
    write_page(numbers)


if __name__ == "__main__":
    main()
