"""Templates as the server of the browser tests gives them."""

import json
import urllib.error
import urllib.request
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[3] / "workflows"

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

# they need no file, so the host would run them: see test_rehearsal.py
REHEARSALS = [name for name in NAMES if "rehearsal" in name]

# the analyser of faces comes from another pack, as the template's note says
OTHER_PACKS = {"8_portrait_mm_diff": "IPAdapterInsightFaceLoader"}

# the front end itself asks it about every node of a graph that lacks one, and the links how large missing files are
REGISTRY = "https://api.comfy.org/"


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.read()


def pack_folder(server):
    """The name under which the host lists our templates."""
    listed = json.loads(get(server, "/api/workflow_templates"))
    (folder,) = [folder for folder, names in listed.items() if set(NAMES) <= set(names)]
    return folder
