"""Finding a ComfyUI on this machine, asking whether it can run, and installing one with comfy-cli."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError
from ..pack import ROOT

LOOKED = "COMFYUI_PATH, two folders up when the pack lies in custom_nodes, ~/comfy/ComfyUI"
PROBE = """
import importlib.metadata as m, json, re, sys
missing = []
for line in open(sys.argv[1], encoding="utf-8"):
    name = re.match(r"[A-Za-z0-9_.-]+", line.split("#")[0].strip())
    if name:
        try: m.version(name.group())
        except m.PackageNotFoundError: missing.append(name.group())
gpu = False
if not missing:
    import torch
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
print(json.dumps({"missing": missing, "gpu": gpu}))
"""


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can run: its folder, the Python that has its requirements, and whether that Python sees a GPU."""

    path: Path
    python: str
    gpu: bool


def find_comfyui() -> Path | None:
    """Return the folder of a ComfyUI. Raises RunError if COMFYUI_PATH is set and holds none."""
    named = os.environ.get("COMFYUI_PATH")
    if named and not _is_comfyui(Path(named)):
        raise RunError(
            f"COMFYUI_PATH is {named}, where no ComfyUI lies (no comfy/model_patcher.py). Set it to "
            "ComfyUI's folder, or unset it."
        )
    above = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    places = [Path(named)] if named else [*above, Path.home() / "comfy" / "ComfyUI"]
    return next((place.resolve() for place in places if _is_comfyui(place)), None)


def usable_host(path: Path) -> Host:
    """Return the ComfyUI with a Python that has what its requirements.txt asks for.

    Raises RunError that names what is missing.
    """
    first: list[str] = []
    for python in _pythons(path):
        answer = _probe(python, path / "requirements.txt")
        if answer is not None and not answer["missing"]:
            return Host(path, python, answer["gpu"])
        first = first or (answer or {}).get("missing", ["everything"])
    raise RunError(
        f"ComfyUI at {path} lacks {len(first)} of the packages it needs ({', '.join(first[:4])}...). "
        f"Install them: pip install -r {path / 'requirements.txt'}"
    )


def install_command(gpu: str) -> list[str]:
    """Return comfy-cli's own command; gpu is one of its flags without dashes ('cpu', 'nvidia', 'm-series')."""
    return [sys.executable, "-m", "comfy_cli", "--skip-prompt", "install", "--version", "latest", f"--{gpu}"]


def install_comfyui(say: Callable[[str], None]) -> Path:
    """Show and run comfy-cli's command. Raises RunError if comfy-cli is missing or fails."""
    try:
        import comfy_cli  # noqa: F401
    except ImportError:
        raise RunError(
            "Installing ComfyUI is comfy-cli's work, and comfy-cli is not installed. Run: pip install comfy-cli"
        ) from None
    command = install_command(_kind_of_gpu())
    say(f"installing ComfyUI into {Path.home() / 'comfy' / 'ComfyUI'} (this needs GitHub):\n  {shlex.join(command)}")
    done = subprocess.run(command, env={**os.environ, "DO_NOT_TRACK": "1"}, check=False)  # noqa: S603 (comfy-cli, as shown)
    path = Path.home() / "comfy" / "ComfyUI"
    if done.returncode or not _is_comfyui(path):
        why = f"exit status {done.returncode}; its reasons are above, often no way to GitHub"
        raise RunError(
            f"comfy-cli did not install ComfyUI ({why}). Without --install-comfyui the embedded engine runs."
        )
    return path


def _kind_of_gpu() -> str:
    import torch

    return "nvidia" if torch.cuda.is_available() else "m-series" if torch.backends.mps.is_available() else "cpu"


def _is_comfyui(place: Path) -> bool:
    return (place / "comfy" / "model_patcher.py").is_file() and (place / "main.py").is_file()


def _pythons(path: Path) -> list[str]:
    """This Python, then those that ComfyUI installations bring."""
    others = [base / "bin" / "python" for base in (path / ".venv", path / "venv")] + [
        base / "Scripts" / "python.exe" for base in (path / ".venv", path / "venv")
    ]
    others.append(path.parent / "python_embeded" / "python.exe")
    return [sys.executable, *(str(python) for python in others if python.is_file())]


def _probe(python: str, requirements: Path) -> dict | None:
    done = subprocess.run([python, "-c", PROBE, str(requirements)], capture_output=True, text=True, check=False)  # noqa: S603 (a Python, by its path)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
