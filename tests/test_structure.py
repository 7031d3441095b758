"""tools/structure.py on a small pack: what is a room, which imports count, circles, and two git revisions."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from troupe_tools.dev import structure
from troupe_tools.errors import RunError

PACK = {
    "nodes/__init__.py": "from .add import Add\n",
    "nodes/add.py": "from ..maths.errors import Fault\nfrom ..maths import areas\nimport json\n",
    "maths/__init__.py": "",
    "maths/errors.py": "class Fault(Exception): ...\n",
    "maths/areas/__init__.py": "",
    "maths/areas/box.py": "from ..errors import Fault\nfrom . import mask\n" + "#" * 121 + "\n",
    "maths/areas/mask.py": "def cut():\n    from .grid import cells\n",
    "maths/areas/grid.py": "from . import box\n",
}


def test_a_small_pack():
    """The rooms are nodes, maths, maths/errors and maths/areas; box, mask and grid import each other in a circle."""
    assert structure.count(PACK) == {
        "modules": "8",
        "rooms": "4",
        "arrows between rooms": "3",
        "mutual pairs of rooms": "0",
        "import circles of modules": "1",
        "lines over 120 columns": "1",
        "longest module": "3 (nodes/add.py)",
    }


def test_an_import_that_runs_back_makes_a_pair():
    changed = {**PACK, "maths/errors.py": "from .areas.grid import cells\n"}
    found = structure.count(changed)
    assert (found["arrows between rooms"], found["mutual pairs of rooms"]) == ("4", "1")
    assert found["import circles of modules"] == "1"  # errors joins it: box imports errors


def test_an_imported_name_is_no_module():
    modules = {"maths/errors", "maths/areas/box"}
    source = "from ..errors import Fault\nfrom .. import errors, size\nfrom .box import Box\nfrom . import box\n"
    assert structure.imported("maths/areas/mask.py", source, modules.__contains__) == modules
    with pytest.raises(RunError, match="below the root in nodes/add.py, found from ...maths import areas"):
        structure.imported("nodes/add.py", "from ...maths import areas", modules.__contains__)


def write(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_command_compares_revisions(tmp_path, monkeypatch, capsys):
    def git(*words):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([shutil.which("git"), *settings, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for number in (1, 2):
        write(tmp_path, {**PACK, "nodes/last.py": "\n" * number, f"nodes/more{number}.py": "", "other.py": ""})
        git("add", ".")
        git("commit", "-m", "a", "--no-gpg-sign")
        git("tag", f"v{number}")
    (tmp_path / "nodes" / "more3.py").touch()
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert structure.main(["v1", "v2", "--folders", "nodes"]) == 0
    head, modules, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["v1", "v2"] and modules.split() == ["modules", "4", "5"]
    assert structure.main(["--folders", "nodes", "maths"]) == 0
    head, modules, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["working", "tree"] and modules.split() == ["modules", "12"]
    assert structure.main(["v3"]) == 1 and "Expected a git revision, found 'v3'" in capsys.readouterr().err
    assert structure.main(["v1", "--folders", "no"]) == 1 and "Expected modules in no" in capsys.readouterr().err
