"""Run a workflow headless: in ComfyUI where there is one, else on the embedded engine."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.comfyui import LOOKED, Host, find_comfyui, install_comfyui, usable_host
from ..engine.report import NOISE, NOT_A_PICTURE, marked, report_text
from ..engine.result import Result
from ..engine.saving import check_output_folder, room_for_temporary_files, save_all
from ..errors import RunError
from ..pack import ROOT
from ..workflow.any_workflow import flatten_workflow
from ..workflow.edit import Changes, Edited, edit
from ..workflow.graph import Graph
from ..workflow.job import GATED, WORDS
from ..workflow.job import REHEARSAL as REHEARSAL_NODE
from ..workflow.needed import ModelFolders, Needed, model_roots, needed_models
from ..workflow.photos import check_photos
from ..workflow.workflow_files import find_workflow, read_workflow

SMALL_SIZE, SMALL_STEPS = (256, 256), 4  # with random models, unless asked otherwise
REHEARSAL = "1_start_here_rehearsal"
ENGINES = ("auto", "comfyui", "embedded")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status. A user's mistake is one sentence on stderr."""
    try:
        options = parse(arguments)
        if options.list_missing:
            return list_missing(options)
        run(options)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Run a workflow headless: in ComfyUI if one is found, otherwise on the embedded engine.",
    )
    parser.add_argument(
        "--workflow",
        help="a shipped template's name or a workflow file (default: 4_two_subjects, or the rehearsal if its "
        "models are missing)",
    )
    parser.add_argument(
        "--photo",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="photo of the first subject; repeat for the next (default: two real photos)",
    )
    parser.add_argument(
        "--name", action="append", default=[], help="name of the first subject as in the prompt; repeat for the next"
    )
    parser.add_argument("--prompt", help="the prompt (default: the workflow's)")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="size of the picture in pixels, such as 1024x1024; one number is a square",
    )
    parser.add_argument("--steps", type=_positive, help="sampling steps")
    parser.add_argument("--seed", type=int, help="seed of the noise")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="a folder with the layout of ComfyUI/models, searched first"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output",
        metavar="DIR",
        help="where everything is saved (default: output in the pack's folder)",
    )
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: ComfyUI if one is found that can run")
    parser.add_argument(
        "--install-comfyui", action="store_true", help="install ComfyUI first with comfy-cli; the command is shown"
    )
    parser.add_argument(
        "--list-missing",
        action="store_true",
        help="only list which model files were found and which are missing, with links",
    )
    parser.add_argument(
        "--random-models",
        action="store_true",
        help="use small models with random weights instead of the model files, to test a workflow; the picture "
        "is noise",
    )
    options = parser.parse_args(arguments)
    options.rehearsal = options.workflow is None and not options.random_models
    options.workflow = options.workflow or "4_two_subjects"
    return options


def list_missing(options: argparse.Namespace) -> int:
    """Print every model file of the workflow; exit status 1 if one is missing."""
    files = _needed(options, find_comfyui())[1]
    print("\n".join(file.describe() for file in files) or "the workflow names no model files")
    return int(any(file.path is None for file in files))


def run(options: argparse.Namespace) -> None:
    """Run the command and print what happens."""
    began = time.monotonic()
    comfyui = install_comfyui(print) if options.install_comfyui else find_comfyui()
    folders, files = _needed(options, comfyui)
    random = report_models(files, options)
    if random and options.rehearsal and options.engine == "comfyui":
        options.workflow, random = REHEARSAL, False
        folders, files = _needed(options, comfyui)
    elif random and options.rehearsal:
        rehearsal(options)
        print(f"done in {time.monotonic() - began:.0f} s")
        return
    host = choose_host(options.engine, comfyui)
    if host is None and (asked := rehearsal_of(_read(options))) is not None:
        from ..engine.rehearsing import check_options

        check_options(options.photo, options.name, options.size)
        prompt, seed, steps = asked
        options.prompt, options.seed, options.steps = (
            options.prompt or prompt,
            seed if options.seed is None else options.seed,
            options.steps or steps,
        )
        rehearsal(options)
        print(f"done in {time.monotonic() - began:.0f} s")
        return
    print(f"workflow: {find_workflow(options.workflow).name}, engine: {'ComfyUI' if host else 'embedded (diffusers)'}")
    if host is None and Graph(_read(options)).of_type(REHEARSAL_NODE):
        from ..engine.rehearsing import check_options

        check_options(options.photo, (), options.size)
    check_photos(options.photo)
    ask_names(options)
    edited = edit(_read(options), changes_of(options, random), _photo_folders(options, comfyui))
    check_output_folder(options.output)
    with room_for_temporary_files():
        result = execute(host, edited, folders, files, random)
    saved = save(result, options.output, random)
    print("\n".join(f"saved {path}" for path in saved))
    print(saved[-1].read_text(encoding="utf-8").rstrip())
    print(f"done in {time.monotonic() - began:.0f} s")


def choose_host(engine: str, comfyui: Path | None) -> Host | None:
    """Return the ComfyUI to run in, or None for the embedded engine.

    Raises RunError if ComfyUI is asked for and cannot run.
    """
    if engine == "embedded":
        return None
    if comfyui is None:
        said = f"No ComfyUI was found (searched: {LOOKED})."
        if engine == "comfyui":
            raise RunError(f"{said} Set COMFYUI_PATH, or add --install-comfyui.")
        print(f"{said} The embedded engine runs instead; --install-comfyui would install one.")
        return None
    try:
        host = usable_host(comfyui)
        _check_converter()
        return host
    except RunError as error:
        if engine == "comfyui":
            raise
        print(f"{error}\nThe embedded engine runs instead.")
        return None


def report_models(files: list[Needed], options: argparse.Namespace) -> bool:
    """Print which model files are missing, and return whether something must replace them.

    Raises RunError if nothing may.
    """
    missing = [file for file in files if file.path is None]
    if not missing:
        return False
    if options.rehearsal:
        from ..engine.rehearsing import check_options

        check_options(options.photo, options.name, options.size)
        print(
            f"{len(missing)} of {len(files)} model files of {options.workflow} are missing (--list-missing "
            "lists them with links)."
        )
        print("The rehearsal models that come with Troupe are used instead.")
        return True
    print(f"{len(missing)} of {len(files)} model files are missing:")
    print("\n".join(file.describe() for file in missing))
    if not options.random_models:
        raise RunError(
            "This workflow needs the files listed above. Download them, or run `python tools/run.py` "
            "without --workflow: it uses models that come with Troupe."
        )
    print("Small models with RANDOM weights are used instead of every model file, including existing ones.\n" + NOISE)
    return True


def rehearsal_of(workflow: dict[str, Any]) -> tuple[str, int, int] | None:
    """Return prompt, seed and steps of a workflow on the rehearsal models, which the embedded engine paints with every
    merge; None for other workflows.

    None also for those that `read_job` reads: with subjects in the prompt, gated layers or another adapter.
    Raises RunError if the workflow does something else with these models.
    """
    graph = Graph(workflow)
    samplers, prompts = (
        graph.of_type("KSampler"),
        [text for node in graph.of_type("CLIPTextEncode") if (text := graph.value(node, "text"))],
    )
    if not graph.of_type(REHEARSAL_NODE) or not samplers:
        return None
    if graph.of_type("TroupeScoreSubjects"):
        raise RunError("Score Subjects needs ComfyUI. Run this workflow there, or leave --workflow out.")
    if graph.of_type(WORDS, GATED) or graph.value(graph.of_type(REHEARSAL_NODE)[0], "adapter") != "mip_adapter":
        return None
    if not prompts:
        raise RunError("This workflow has no prompt. Type one into CLIP Text Encode, or leave --workflow out.")
    return prompts[0], graph.value(samplers[0], "seed"), graph.value(samplers[0], "steps")


def rehearsal(options: argparse.Namespace) -> None:
    """Paint with the rehearsal models, on the embedded engine, and save picture, comparison and report."""
    _check_extra()
    check_output_folder(options.output)
    from ..engine.rehearsing import rehearse

    with room_for_temporary_files():
        made = rehearse(options.prompt, options.seed, options.steps, StepDisplay())
    text = "\n".join(made.lines) + "\n"
    files = {
        "picture.png": made.picture.save,
        "comparison.png": made.comparison.save,
        "report.txt": lambda path: path.write_text(text, encoding="utf-8"),
    }
    saved = save_all(files, options.output)
    print("\n".join(f"saved {path}" for path in saved))
    print(text.rstrip())


def ask_names(options: argparse.Namespace) -> None:
    """Complete `options.name`: ask for the name of every photo that has none.

    Raises RunError if nobody can be asked, or a name is blank.
    """
    if not all(name.strip() for name in options.name):
        raise RunError("A --name is blank. Give the subject's noun in the prompt, such as --name cat.")
    for path in options.photo[len(options.name) :]:
        if not path.is_file():
            return
        if not sys.stdin.isatty():
            raise RunError(
                f"--photo {path} has no name. Add --name with its noun in the prompt, such as --name cat, "
                "and --prompt with a prompt that has the noun."
            )
        name = ""
        while not name:
            name = input(f"Noun for {path.name} in the prompt: ").strip()
        options.name.append(name)


def changes_of(options: argparse.Namespace, random: bool) -> Changes:
    """Return what the command line changes; random models run small and short unless asked otherwise."""
    changes = Changes(
        tuple(options.photo), tuple(options.name), options.prompt, options.size, options.steps, options.seed
    )
    if random and (changes.size is None or changes.steps is None):
        size, steps = changes.size or SMALL_SIZE, changes.steps or SMALL_STEPS
        changes = replace(changes, size=size, steps=steps)
        print(
            f"random models: {size[0]}x{size[1]} pixels and {steps} steps instead of the workflow's, as only the "
            "plumbing can be seen (--size and --steps change it)"
        )
    return changes


def execute(host: Host | None, edited: Edited, folders: ModelFolders, files: list[Needed], random: bool) -> Result:
    """Run on the chosen engine."""
    progress = StepDisplay()
    if host is not None:
        from ..engine.on_comfyui import run_on_comfyui

        return run_on_comfyui(host, edited, folders, random, print, progress)
    from ..workflow.job import read_job

    job = read_job(edited.workflow)
    _check_extra()
    from ..engine import embedded, embedded_models

    embedded.check_size(job)
    if job.checkpoint == REHEARSAL_NODE:
        from ..engine.rehearsal_models import enlarged, rehearsal_models

        result = embedded.run_embedded(job, edited.photos, rehearsal_models(job), print, progress)
        return replace(result, pictures=tuple(map(enlarged, result.pictures)))
    with tempfile.TemporaryDirectory(prefix="troupe_run_") as folder:
        models = embedded_models.random_models(job, Path(folder)) if random else embedded_models.real_models(job, files)
        return embedded.run_embedded(job, edited.photos, models, print, progress)


def save(result: Result, folder: Path, random: bool) -> list[Path]:
    """Write the pictures, the references as the encoder saw them, and report.txt, which comes last.

    See `saving.save_all`.
    """
    name, files = NOT_A_PICTURE if random else "picture.png", {}
    for number, picture in enumerate(result.pictures):
        files[name if not number else name.replace(".png", f"_{number + 1}.png")] = (
            marked(picture) if random else picture
        ).save
    for number, preview in enumerate(result.previews, 1):
        files[f"reference_{number}_as_the_encoder_saw_it.png"] = preview.save
    text = report_text(list(result.facts), list(result.reached), list(result.lines), random)
    files["report.txt"] = lambda path: path.write_text(text, encoding="utf-8")
    return save_all(files, folder)


@dataclass
class StepDisplay:
    """A display of steps: on one line of a terminal, else a line now and then."""

    last: int = -1

    def __call__(self, done: int, of: int) -> None:
        if done == self.last:
            return
        self.last = done
        if sys.stdout.isatty():
            print(f"\r  step {done} of {of}", end="\n" if done == of else "", flush=True)
        elif done == of or done % max(1, of // 4) == 0:
            print(f"  step {done} of {of}", flush=True)


def _needed(options: argparse.Namespace, comfyui: Path | None) -> tuple[ModelFolders, list[Needed]]:
    if options.models is not None and not options.models.is_dir():
        raise RunError(f"There is no folder {options.models}. Give --models a folder laid out as ComfyUI/models.")
    folders = model_roots(comfyui, options.models)
    return folders, needed_models(Graph(_read(options)), folders)


def _read(options: argparse.Namespace) -> dict[str, Any]:
    return flatten_workflow(read_workflow(find_workflow(options.workflow)))


def _photo_folders(options: argparse.Namespace, comfyui: Path | None) -> list[Path]:
    """Where photos lie that a workflow names: beside it, and in ComfyUI's input folder."""
    return [find_workflow(options.workflow).resolve().parent, *([comfyui / "input"] if comfyui else [])]


def _check_converter() -> None:
    import importlib.util

    if importlib.util.find_spec("comfy_cli") is None:
        raise RunError(
            "ComfyUI is there, but comfy-cli, which converts saved workflows for it, is not installed. Run: "
            "pip install comfy-cli"
        )


def _check_extra() -> None:
    import importlib.util

    missing = [
        name
        for name in ("torch", "diffusers", "transformers", "open_clip", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise RunError(f'The embedded engine needs {", ".join(missing)}. Run: pip install -e ".[run]"')


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x*](\d+))?", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1024x1024, found '{text}'")
    return int(found[1]), int(found[2] or found[1])


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found '{text}'")
    return int(text)
