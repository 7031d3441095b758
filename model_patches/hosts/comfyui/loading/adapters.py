"""Adapter files on the host: which there are, loading them into the host's memory management, finding their image
encoder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch

from .....rehearsal import files as shipped
from ....adapter import Adapter, AdapterSpec, EncoderNeed, PhotoSpec, Weights
from ....checkpoints.adapter_file import adapter_label
from ....checkpoints.catalogue import (
    DEFAULT_ADAPTER,
    ENCODERS,
    encoder_of_width,
    identity,
    published_file,
    where_to_get,
)
from ....checkpoints.clip_vision import best_encoder, encoder_widths
from ....checkpoints.files import EXTENSIONS
from ....encoding.interfaces import check_image_encoder
from ....errors import CheckpointError
from ....families.registry import belonging, read_adapter
from . import rehearsal_models

log = logging.getLogger("troupe")
FOLDERS = ("ipadapter", "gligen", "subject_adapters")
REHEARSAL = "rehearsal"  # in a combo value, in place of a folder: the pack's own files, which no other pack shall list
AUTO, NONE = "auto", "none"
NO_FILES = "(no adapter file yet)"


@dataclass(frozen=True, eq=False)
class HostAdapter:
    """An adapter whose modules the host moves: `projection_patcher` at Encode, `layers_patcher` (image attention) and
    `gated_patcher` with the MODEL while it samples, `fusion_patcher` at Encode Prompt; None for what the file has not.
    weights: of the base model, on the CPU."""

    spec: AdapterSpec
    id: str
    projection_patcher: Any
    layers_patcher: Any
    clip_vision_name: str = AUTO
    gated_patcher: Any = None
    weights: Weights = Weights()
    fusion_patcher: Any = None
    _vision: dict = field(default_factory=dict, repr=False)  # (path, modified) -> CLIP_VISION, at most one

    @property
    def key(self) -> str:
        """Name under which it is attached to a MODEL."""
        return f"troupe.{self.id}"

    def project(self, *features: torch.Tensor) -> Any:
        """Project encoder output [n, ...] by the adapter's projection: one or several tensors, float32."""
        comfy.model_management.load_models_gpu([self.projection_patcher])
        patcher, done = self.projection_patcher, comfy.model_management.intermediate_device()
        found = patcher.model(*(f.to(patcher.load_device, torch.float32) for f in features))
        return found.to(done) if isinstance(found, torch.Tensor) else tuple(f.to(done) for f in found)

    def clip_vision(self) -> Any | None:
        """Return the host's CLIP_VISION for this adapter, loaded at first use; None if there is none or the adapter
        reads no photos.

        It is the chosen file. For 'auto', and for a published name that is not in the folder, it is a file whose
        contents fit, or the rehearsal encoder for adapters that were trained with it.

        Raises:
            MismatchError, CheckpointError: the chosen file is of other widths, gone, damaged or no encoder.
        """
        if not self.spec.has(PhotoSpec):
            return None
        need = self.spec.part(PhotoSpec).encoder
        if self.clip_vision_name == AUTO and rehearsal_models.is_read_by(self.spec):
            return rehearsal_models.clip_vision()
        check_clip_vision_name(self.clip_vision_name)
        name = self.clip_vision_name
        if name == AUTO or name != NONE and not _has_clip_vision(name):
            name = find_clip_vision(need)
        if name in (None, NONE):
            return None
        path = folder_paths.get_full_path("clip_vision", name)
        file = (path, os.stat(path).st_mtime_ns)
        if file not in self._vision:
            widths = encoder_widths(path)
            if widths is not None:
                check_image_encoder(self.spec, widths)  # from the file's headers, before gigabytes are read
            self._vision.clear()
            self._vision[file] = _load_clip_vision(path, name, need)
        return self._vision[file]


def register_folders(names: Sequence[str] = FOLDERS) -> None:
    """Make the host list folders of `models`, beside whatever paths other packs have given them, and create them where
    it may.
    """
    for name in names:
        usual = os.path.join(folder_paths.models_dir, name)
        folder_paths.folder_names_and_paths.setdefault(name, ([], set(EXTENSIONS)))
        folder_paths.add_model_folder_path(name, usual)
        with suppress(OSError):  # a models folder that cannot be written to lists what is in it all the same
            os.makedirs(usual, exist_ok=True)


def adapter_names() -> list[str]:
    """Return the choices of `adapter_name`: every weight file by its path in its adapter folder, with forward slashes
    on every system; last the adapters that come with the pack.

    Where there is no file yet, the first choice says so, and means no file.
    """
    own = [f"{REHEARSAL}/{name}" for name in shipped.EVERY_ADAPTER.values() if (shipped.FOLDER / name).is_file()]
    return [*(_files_by_label() or [NO_FILES]), *own]


def _files_by_label() -> dict[str, tuple[str, str]]:
    """Each choice with its folder and its path in there.

    A path that an earlier folder has too, or that begins as a folder's name, is listed as `<folder>/<path>`.
    """
    found: dict[str, tuple[str, str]] = {}
    for folder in FOLDERS:
        for name in folder_paths.get_filename_list(folder):
            if name.lower().endswith(EXTENSIONS):
                shown = name.replace("\\", "/")
                found[f"{folder}/{shown}" if shown in found or shown.partition("/")[0] in FOLDERS else shown] = (
                    folder,
                    name,
                )
    return found


def clip_vision_names() -> list[str]:
    """Return the choices of `clip_vision_name`."""
    return [AUTO, NONE] + [name.replace("\\", "/") for name in folder_paths.get_filename_list("clip_vision")]


def check_clip_vision_name(name: str) -> None:
    """Raise CheckpointError unless the value is auto, none, a file of models/clip_vision (either slash), or a published
    encoder's: people save those under other names.
    """
    if (
        name not in (AUTO, NONE)
        and not _has_clip_vision(name)
        and published_file(name) not in [encoder.file for encoder in ENCODERS]
    ):
        raise CheckpointError(
            "a file in models/clip_vision",
            f"no '{name}'",
            "Set 'clip_vision_name' to auto, or put the file there and press R.",
        )


def _has_clip_vision(name: str) -> bool:
    return folder_paths.get_full_path("clip_vision", name.replace("\\", "/")) is not None


def adapter_path(name: str) -> str:
    """Return the file of a combo value (either slash), or of one that an older workflow saved, with the folder before
    it.

    Raises:
        CheckpointError: it is not there; the message has the download link where the file is a known one.
    """
    name = name.replace("\\", "/")
    if name == NO_FILES and _files_by_label():
        raise CheckpointError("an adapter file", f"'{NO_FILES}'", "Choose one in 'adapter_name'.")
    if name == NO_FILES:
        raise CheckpointError(
            "an adapter file",
            "none in models/ipadapter, models/gligen or models/subject_adapters",
            f"{where_to_get(DEFAULT_ADAPTER)}, then press R to refresh the list, and choose it. Without a "
            f"download: open template 1 (Start here), or choose '{REHEARSAL}/{shipped.ADAPTERS['mip']}' for the models "
            "of Load Rehearsal Models.",
        )
    folder, _, rest = name.partition("/")
    if folder == REHEARSAL and rest in shipped.EVERY_ADAPTER.values():
        if not (shipped.FOLDER / rest).is_file():
            raise CheckpointError(f"the file '{rest}'", f"nothing at {shipped.FOLDER / rest}", shipped.AGAIN)
        return str(shipped.FOLDER / rest)
    path = folder_paths.get_full_path(folder, rest) if folder in FOLDERS and rest else None
    if path is None and (place := _files_by_label().get(name)) is not None:
        path = folder_paths.get_full_path(*place)
    if path is None:
        known = published_file(name) or (DEFAULT_ADAPTER if folder == FOLDERS[0] else None)
        where = (
            f"models/{folder}" if folder in FOLDERS else "models/ipadapter, models/gligen or models/subject_adapters"
        )
        get = where_to_get(known) if known else f"Put it into {where}, or choose another file"
        found = "no such file in models/ipadapter, models/gligen or models/subject_adapters"
        raise CheckpointError(f"the adapter file '{name}'", found, f"{get}, then press R to refresh the list.")
    return path


def load_adapter(name: str, clip_vision_name: str = AUTO) -> HostAdapter:
    """Load an adapter file, with those that belong to it, into modules that the host's memory management moves.

    Raises CheckpointError.
    """
    label = adapter_label(name)
    path = adapter_path(name)
    # the same file is the same adapter
    adapter = replace(
        read_adapter(path, label, comfy.ops.manual_cast),
        id=sha1(fingerprint(name).encode(), usedforsecurity=False).hexdigest(),
    )
    log.info("Troupe: loaded %s: %s, %s.", label, adapter.spec.describe(), identity(path, adapter.spec.family))
    return host_adapter(adapter, clip_vision_name.replace("\\", "/"))


def host_adapter(adapter: Adapter, clip_vision_name: str = AUTO) -> HostAdapter:
    """Return the adapter with its modules under the host's memory management."""
    projection, layers, gated, fusion = (
        None if m is None else _patcher(m) for m in (adapter.projection, adapter.layers, adapter.gated, adapter.fusion)
    )
    return HostAdapter(adapter.spec, adapter.id, projection, layers, clip_vision_name, gated, adapter.weights, fusion)


def invalid_names(adapter_name: str | None, clip_vision_name: str | None = AUTO) -> str | None:
    """Return a line for each combo value that names no file, else None.

    A value that comes over a wire is None until the graph runs.
    """
    lines = []
    for check, name in ((adapter_path, adapter_name), (check_clip_vision_name, clip_vision_name)):
        try:
            if name is not None:
                check(name)
        except CheckpointError as error:
            lines.append(str(error))
    return "\n".join(lines) or None


def fingerprint(name: str | None) -> str:
    """Return a value that changes when the file behind a combo value does, or one that belongs to it, also where the
    new one has the size and time of the old.
    """
    try:
        stats = [(path, os.stat(path)) for path in belonging(Path(adapter_path(name or "")))]
    except (CheckpointError, OSError):
        return f"{name}: missing"
    return "|".join([*(f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}" for path, stat in stats)])


def find_clip_vision(need: EncoderNeed) -> str | None:
    """Return the file of models/clip_vision whose headers show an encoder of the needed widths under any name,
    a published name before others; see `best_encoder`.
    """
    names = sorted(folder_paths.get_filename_list("clip_vision"), key=lambda name: published_file(name) is None)
    return best_encoder(
        names, lambda widths: need.fits(*widths), lambda name: folder_paths.get_full_path("clip_vision", name)
    )


def _load_clip_vision(path: str, name: str, need: EncoderNeed) -> Any:
    """The host's CLIP_VISION in a file. Raises CheckpointError if there is none."""
    known = encoder_of_width(need.kind, need.width)
    fetch = (
        f"{where_to_get(known.file)}, then set 'clip_vision_name' to auto."
        if known
        else "Set 'clip_vision_name' to auto."
    )
    try:
        loaded = comfy.clip_vision.load(path)
    except Exception as error:  # every reader has exceptions of its own for a damaged file
        found = f"a file that could not be read ({type(error).__name__})"
        raise CheckpointError(
            f"{need.describe()} in models/clip_vision/{name}",
            found,
            f"The download was probably cut off: delete the file. {fetch}",
        ) from error
    if loaded is None:
        raise CheckpointError(
            f"{need.describe()} in models/clip_vision/{name}",
            "a file that ComfyUI does not recognise as a CLIP vision encoder",
            fetch,
        )
    return loaded


def _patcher(module: torch.nn.Module, disable_dynamic: bool = False) -> Any:
    """The host's memory management around a module of Troupe (its dynamic kind where the host has one, unless
    disabled).
    """
    plain = comfy.model_patcher.ModelPatcher
    make: Callable[..., Any] = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    patcher = make(
        module,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    if hasattr(patcher, "cached_patcher_init"):  # by which newer hosts make one more of it, for another device
        patcher.cached_patcher_init = (_another, (module,))
    return patcher


def _another(module: torch.nn.Module, disable_dynamic: bool = False) -> Any:
    """The same around a copy of the module."""
    return _patcher(deepcopy(module), disable_dynamic)
