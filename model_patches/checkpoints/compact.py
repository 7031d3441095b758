"""Tensors that a file stores in less room, as the rehearsal world's files do.

- `<name>_scale` beside an int8 tensor [n, ...]: the factor of each row, [n, 1, ...]; the names are those of
  compressed-tensors.
- `<name>_rows` and `<name>_size` beside a tensor [k, ...]: the numbers of its rows in a tensor of `size` rows, whose
  other rows are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .tensors import State

SCALE, ROWS, ALL_ROWS = "_scale", "_rows", "_size"
MOST_ROWS = 1_000_000  # more than any vocabulary has
STEPS = 127


def expanded(state: Mapping[str, torch.Tensor]) -> State:
    """Return a file's tensors, those that are stored in less room in full: int8 in the dtype of its factors.

    Raises ValueError where the parts of one do not fit.
    """
    found = dict(state)
    for name, tensor in state.items():
        if tensor.dtype == torch.int8 and f"{name}{SCALE}" in found:
            found[name] = _of_int8(name, tensor, found.pop(f"{name}{SCALE}"))
        elif f"{name}{ROWS}" in found and f"{name}{ALL_ROWS}" in found:
            found[name] = _of_rows(name, tensor, found.pop(f"{name}{ROWS}"), found.pop(f"{name}{ALL_ROWS}"))
    return found


def compacted(
    state: Mapping[str, torch.Tensor],
    in_int8: Callable[[str], bool] = lambda name: False,
    only_rows: Callable[[str], bool] = lambda name: False,
) -> State:
    """Return tensors as `expanded` reads them, factors and the others that are numbers in float16.

    Arguments:
        in_int8: which matrices and convolutions to store so, by name; each number moves by up to 1/254 of the largest
            in its row.
        only_rows: which tensors to store without their rows of zeros, by name.
    """
    found: State = {}
    for name, tensor in state.items():
        if only_rows(name):
            kept = tensor.flatten(1).any(1).nonzero().flatten()
            found[f"{name}{ROWS}"] = kept.to(torch.int32)
            found[f"{name}{ALL_ROWS}"] = torch.tensor(len(tensor), dtype=torch.int32)
            tensor = tensor[kept]
        elif tensor.ndim > 1 and tensor.is_floating_point() and in_int8(name):
            scale = (tensor.float().flatten(1).abs().amax(1) / STEPS).clamp(min=1e-7).half()
            scale = scale.view(-1, *[1] * (tensor.ndim - 1))
            found[f"{name}{SCALE}"] = scale
            tensor = (tensor.float() / scale.float()).round().clamp(-STEPS, STEPS).to(torch.int8)
        found[name] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    return found


def _of_int8(name: str, tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.shape != (len(tensor), *[1] * (tensor.ndim - 1)) or not scale.is_floating_point():
        raise ValueError(f"'{name}{SCALE}': expected a factor for each of {len(tensor)} rows, got {list(scale.shape)}")
    return tensor.to(scale.dtype) * scale


def _of_rows(name: str, tensor: torch.Tensor, rows: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    whole = int(size) if size.numel() == 1 and not size.is_floating_point() else 0
    numbers = rows.tolist() if rows.ndim == 1 and not rows.is_floating_point() else []
    fits = numbers and len(set(numbers)) == len(tensor) and min(numbers) >= 0 and max(numbers) < whole <= MOST_ROWS
    if not fits or len(numbers) != len(tensor):
        raise ValueError(f"'{name}{ROWS}': expected the numbers of {len(tensor)} rows out of {whole}")
    return tensor.new_zeros(whole, *tensor.shape[1:]).index_copy_(0, rows.long(), tensor)
