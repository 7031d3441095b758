"""Will this workflow run here? Missing nodes, missing model files with their links, wires and values that do
not fit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.comfyui import LOOKED, find_comfyui, usable_host
from ..engine.host_server import HostServer, link
from ..errors import RunError
from ..pack import ROOT
from ..workflow.any_workflow import flatten_workflow
from ..workflow.findings import (
    Finding,
    broken_links,
    browser_packs,
    missing_nodes,
    no_output,
    packs_named,
    wrong_values,
    wrong_wires,
)
from ..workflow.from_ipadapter import from_ipadapter
from ..workflow.graph import ACTIVE, Graph
from ..workflow.model_files import Listed, Places, is_missing, places_of, wanted_files
from ..workflow.needed import EXTENSIONS, Needed
from ..workflow.virtual import is_virtual
from ..workflow.workflow_files import find_workflow, read_workflow

USUAL_URL = "http://127.0.0.1:8188"
KINDS = {"node": "missing node type", "file": "missing model file", "wire": "wrong wire", "value": "wrong value"}


@dataclass(frozen=True, eq=False)
class Here:
    """The facts about the place to run in: its /object_info (None: no host), its model folders, and what a running one
    lists in a folder.
    """

    info: dict[str, Any] | None
    places: Places
    listed: Listed | None = None
    without: str = ""


@dataclass(frozen=True)
class CheckReport:
    """The result of a check. findings: what is in the way; notes: what could not be checked; counts: what was."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    counts: str

    def summary(self) -> str:
        """Return one line: what was checked, and whether it will run."""
        if not self.findings:
            return f"checked {self.counts}: " + (
                "no problem found, as far as could be checked" if self.notes else "it will run here"
            )
        kinds = Counter(finding.kind for finding in self.findings)
        said = ", ".join(f"{n} {KINDS[kind]}{'s' if n > 1 else ''}" for kind, n in kinds.items())
        return f"checked {self.counts}: it will not run here ({said})"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if nothing is in the way."""
    try:
        options = parse(arguments)
        return rewrite(options) if options.from_ipadapter else run_check(options)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="check.py",
        description="Check whether a workflow will run here: nodes, model files (with links), links and values.",
    )
    parser.add_argument(
        "workflow",
        nargs="?",
        metavar="WORKFLOW",
        help="a workflow file, saved or exported for the API, a picture with one in it, or a shipped template's name",
    )
    host = parser.add_mutually_exclusive_group()
    host.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="start this ComfyUI, with its nodes and models (default: a running one, otherwise the one that is found)",
    )
    host.add_argument("--url", help=f"ask this running ComfyUI (default: {USUAL_URL} if it answers)")
    host.add_argument("--no-host", action="store_true", help="use no ComfyUI: check files and links only")
    parser.add_argument(
        "--from-ipadapter",
        type=Path,
        metavar="OLD",
        help="convert the stacked IPAdapter nodes of this workflow to Troupe's",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="NEW",
        help="where to save the converted workflow (default: beside the old one, with _troupe in its name)",
    )
    options = parser.parse_args(arguments)
    if (options.workflow is None) == (options.from_ipadapter is None):
        parser.error("give a workflow, or --from-ipadapter with one")
    return options


def run_check(options: argparse.Namespace) -> int:
    """Check one workflow and print what was found."""
    workflow = read_workflow(find_workflow(options.workflow))
    flatten_workflow(workflow)  # a file that is no workflow is reported before a host starts
    with place(options) as here:
        report = check(workflow, here)
    print(
        "\n".join(
            [
                *(finding.text for finding in report.findings),
                *report.notes,
                f"{Path(options.workflow).name}: {report.summary()}",
            ]
        )
    )
    return int(bool(report.findings))


def rewrite(options: argparse.Namespace) -> int:
    """Rewrite one workflow, save it, and print what could not be converted.

    Raises RunError if there is nothing to convert, or the new file is the old one.
    """
    old = options.from_ipadapter
    new = options.output or old.with_name(f"{old.stem}_troupe.json")
    result = from_ipadapter(read_workflow(old))
    print("\n".join(result.said) if result.said else "everything was carried")
    if not result.carried:
        raise RunError(
            f"{old.name}: expected IPAdapter or IPAdapter Advanced nodes that can be converted, found none; "
            "nothing was saved."
        )
    if new.resolve() == old.resolve():
        raise RunError(
            f"Expected another file for the rewritten workflow, found the old one ({new}). Name a new one with -o."
        )
    new.write_text(json.dumps(result.workflow, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{result.carried} IPAdapter node{'s' if result.carried > 1 else ''} rewritten, saved {new}")
    return 0


def check(workflow: dict[str, Any], here: Here) -> CheckReport:
    """Return all findings about a workflow at a place. Raises RunError if it is none."""
    graph = Graph(flatten_workflow(workflow))
    findings, notes = broken_links(workflow), []
    try:
        files = wanted_files(graph, here.places, here.info)
    except ImportError as error:
        files = []
        notes.append(
            f"not checked: model files, since {error.name or 'torch'} is not installed here, which is "
            "needed to read them; run this with ComfyUI's Python."
        )
    gone = [file for file in files if is_missing(file, here.listed)]
    findings += [Finding("file", _missing_file(file)) for file in gone]
    active = [node for node in graph.nodes.values() if node.mode == ACTIVE and not is_virtual(node.type)]
    if here.info is None:
        packs = packs_named(graph)
        notes.append(
            f"not checked: node types, values and sockets of the nodes, since {here.without}"
            + (f"; the file names these packs: {', '.join(packs)}." if packs else ".")
        )
    else:
        told = {finding.text for finding in findings}
        wires = [finding for finding in wrong_wires(graph, here.info) if finding.text not in told]
        notes += [
            f"not checked: nodes that work in the browser alone, of the pack {pack}, which this ComfyUI "
            "does not seem to have; install it there."
            for pack in browser_packs(graph, here.info)
        ]
        findings = [
            *missing_nodes(graph, here.info),
            *no_output(graph, here.info),
            *findings,
            *wires,
            *wrong_values(graph, here.info, gone),
        ]
    counts = (
        f"{len(active)} node{'s' if len(active) != 1 else ''}, {len(graph.links)} links, {len(files)} model "
        f"file{'s' if len(files) != 1 else ''}"
    )
    return CheckReport(tuple(findings), tuple(notes), counts)


def _missing_file(file: Needed) -> str:
    folder = f"models/{file.folder}" if file.folder else "ComfyUI's models folder"
    fetch = "download {}" if "/resolve/" in file.link or file.link.endswith(EXTENSIONS) else "look on {} for it"
    get = fetch.format(file.link) if file.link else "no link is known, look at the page you have the workflow from"
    size = f" ({file.size})" if file.size and file.size[0].isdigit() else ""
    return f"model file: expected {folder}/{file.name}{size}, found no such file; {get}" + (
        f" and save it under this name in {folder}." if file.link else "."
    )


# ---- the host --------------------------------------------------------------------------------------------------------


@contextmanager
def place(options: argparse.Namespace) -> Iterator[Here]:
    """Choose where to run the workflow. Raises RunError if the host that was asked for does not answer or start."""
    comfyui = options.comfyui or find_comfyui()
    if options.comfyui and not (options.comfyui / "main.py").is_file():
        raise RunError(
            f"Expected a ComfyUI in {options.comfyui}, found no main.py there. Give --comfyui ComfyUI's own folder."
        )
    places = places_of(comfyui)
    if options.no_host:
        yield Here(None, places, without="--no-host was given")
        return
    url = options.url or (USUAL_URL if not options.comfyui else "")
    info = ask(url, "/object_info", must=bool(options.url)) if url else None
    if info is not None:
        print(f"asking the ComfyUI at {url}")
        yield Here(info, places, listed=lambda folder: ask(url, f"/models/{folder}"))
    elif comfyui is None:
        yield Here(None, places, without=f"no ComfyUI was found (looked at {USUAL_URL}, {LOOKED})")
    else:
        yield started(comfyui, places, must=bool(options.comfyui))


def ask(url: str, path: str, must: bool = False) -> Any:
    """Return the answer of a running ComfyUI, or None. Raise RunError if it must answer and does not."""
    if not url.startswith(("http://", "https://")):
        raise RunError(
            f"Expected the address of a ComfyUI that begins with http:// or https://, found '{url}'. Write "
            f"it so, as in {USUAL_URL}, or leave --url out."
        )
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}{path}", timeout=60 if must else 5) as answer:  # noqa: S310 (looked at above)
            return json.load(answer)
    except (OSError, ValueError) as error:
        if must:
            raise RunError(
                f"Expected a ComfyUI at {url}, found no answer ({getattr(error, 'reason', error)}). Start "
                "it, or leave --url out."
            ) from None
        return None


def started(comfyui: Path, places: Places, must: bool) -> Here:
    """Start a ComfyUI with its own packs and models, take its /object_info, and end it."""
    print(f"starting ComfyUI ({comfyui}) to ask for its nodes")
    try:
        host = usable_host(comfyui.resolve())
        with tempfile.TemporaryDirectory(prefix="troupe_check_") as folder:
            server = HostServer(replace(host, gpu=False), Path(folder), places.as_extra_paths(), say=lambda line: None)
            _share(comfyui, Path(folder))
            with server:
                return Here(server.object_info(), places)
    except RunError as error:
        if must:
            raise
        return Here(None, places, without=f"ComfyUI did not start ({error})")


def _share(comfyui: Path, base: Path) -> None:
    """Link the user's packs and input folder into the server's base folder."""
    packs = comfyui / "custom_nodes"
    for pack in sorted(packs.iterdir()) if packs.is_dir() else []:
        if (
            pack.is_dir()
            and pack.resolve() != ROOT
            and pack.name != "__pycache__"
            and not pack.name.endswith(".disabled")
        ):
            link(pack, base / "custom_nodes" / pack.name)
        elif pack.suffix == ".py":
            shutil.copy(pack, base / "custom_nodes" / pack.name)
    if (comfyui / "input").is_dir():
        (base / "input").rmdir()
        link(comfyui / "input", base / "input")
