"""From a file's tensors to modules: every name and shape is compared first, and every difference is a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..encoders.projections import MisshapenTensor
from ..errors import CheckpointError, quoted

State = dict[str, torch.Tensor]
SMALL_NUMBER = re.compile(r"[1-9][0-9]?")  # in a file's metadata
AGAIN = "The file is incomplete or altered: download it again from its publisher."
DAMAGED = "The file is damaged, or its conversion failed: download it again from its publisher."
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    *(getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")),
)
QUANTISED = "Quantised adapters are not supported: download the file from its publisher."


def part(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """Return the tensors below `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def missing(name: str, file: str) -> CheckpointError:
    """Return the error about a missing tensor."""
    return CheckpointError(f"the tensor '{name}' in '{file}'", "no such tensor", AGAIN)


def check_matrix(state: Mapping[str, torch.Tensor], name: str, file: str, prefix: str = "") -> None:
    """Raise CheckpointError unless there is a tensor of that name with two axes, neither of them empty; `prefix`: what
    precedes its name in the file.
    """
    if name not in state:
        raise missing(f"{prefix}{name}", file)
    if state[name].ndim != 2 or 0 in state[name].shape:
        raise CheckpointError(
            f"'{prefix}{name}' of '{file}' to have 2 axes", f"the shape {list(state[name].shape)}", AGAIN
        )


@contextmanager
def reading(file: str, prefix: str) -> Iterator[None]:
    """Turn the KeyError and MisshapenTensor of a module's `widths` into CheckpointErrors; `prefix`: of its names in the
    file.
    """
    try:
        yield
    except KeyError as absent:
        raise missing(f"{prefix}{absent.args[0]}", file) from None
    except MisshapenTensor as bad:
        raise CheckpointError(
            f"'{prefix}{bad.name}' of '{file}' to have {bad.expected}", f"the shape {list(bad.shape)}", AGAIN
        ) from None


def check_format(metadata: Mapping[str, str], name: str, version: int, file: str) -> None:
    """Raise CheckpointError if a file's metadata say that it is of this format in another version; no metadata: the
    present one.
    """
    found = metadata.get("version", str(version))
    if metadata.get("format", name) == name and found != str(version):
        raise CheckpointError(
            f"version {version} of the format {name} in '{file}'",
            f"version {quoted(found)[1:-1]}",
            "Update Troupe, or make the file again with its own tool.",
        )


def check_shapes(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], file: str, kind: str
) -> None:
    """Raise CheckpointError unless the tensors are exactly those of `shapes`, all of finite floating-point numbers;
    kind: 'a GLIGEN file'.
    """
    for name, shape in shapes.items():
        if name not in state:
            raise missing(name, file)
        found = state[name]
        if tuple(found.shape) != tuple(shape):
            raise CheckpointError(
                f"'{name}' of '{file}' to have the shape {list(shape)}", f"{list(found.shape)}", AGAIN
            )
        check_numbers(found, name, file)
    unknown = [name for name in state if name not in shapes]
    if unknown:
        found = f"{len(unknown)} unknown ones, such as '{unknown[0]}'"
        remedy = "This variant is not supported yet: please report it with a link to the file."
        raise CheckpointError(f"only tensors of {kind} in '{file}'", found, remedy)


def check_numbers(tensor: torch.Tensor, name: str, file: str) -> None:
    """Raise CheckpointError unless a tensor's numbers are of a floating-point dtype that layers compute with or are
    cast from, and finite: one NaN makes a black picture.
    """
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"floating-point numbers in '{name}' of '{file}'", str(tensor.dtype).removeprefix("torch."), QUANTISED
        )
    # no reduction of 8-bit numbers; their range is less
    numbers = tensor if tensor.element_size() > 1 else tensor.half()
    if numbers.numel() and not numbers.is_meta and not all(map(torch.isfinite, numbers.aminmax())):
        raise CheckpointError(
            f"finite numbers in '{name}' of '{file}'", "NaN or infinity, which would give a black picture", DAMAGED
        )


def assign(
    module: nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str], file: str, kind: str
) -> None:
    """Make the published tensors the module's own, in their dtypes, after `check_shapes`. names: of every tensor of the
    module -> as published.
    """
    wanted = module.state_dict()
    check_shapes(state, {names[ours]: tuple(tensor.shape) for ours, tensor in wanted.items()}, file, kind)
    module.load_state_dict({ours: state[names[ours]] for ours in wanted}, assign=True)
    module.eval().requires_grad_(False)
