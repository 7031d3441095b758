"""Prepare Faces on the host: through its own validation, executor and cache, with an analyser of another pack."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from support.host.node_chains import photo, prompt_executor, run
from troupe.model_patches.encoding.alignment import TEMPLATE
from troupe.model_patches.errors import SubjectError

pytestmark = pytest.mark.usefixtures("host")
LONG = np.arange(512, dtype=np.float32)


class Face:
    kps, bbox, embedding, normed_embedding = (
        np.array(TEMPLATE, dtype=np.float32) * 2 + 10,
        np.array([10, 10, 60, 70]),
        LONG,
        None,
    )


class Analyser:
    """Sees one face in every picture, and counts."""

    def __init__(self):
        self.calls, self.models = 0, {"recognition": type("Recognition", (), {"model_file": "glintr100.onnx"})}

    def get(self, picture):
        self.calls += 1
        return [Face()]


ANALYSER = Analyser()


class Loader:
    """Another pack's loader of an analyser; `RETURN_TYPES` by subclass."""

    CATEGORY, FUNCTION = "test", "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return ({"provider": "CPU", "model": ANALYSER},)


class Vectors(Loader):
    """Another pack's face vectors."""

    RETURN_TYPES = ("FACE_EMBEDS",)

    def load(self):
        return (torch.eye(1, 512)[:, None],)


class Photo(Loader):
    RETURN_TYPES = ("IMAGE",)

    def load(self):
        return (photo(260, 270, seed=1),)


class Keep:
    """The end of the graph; what reached it."""

    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES, got = "test", "keep", True, (), []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"cast": ("TROUPE_CAST",)}}

    def keep(self, cast):
        self.got.append(cast)
        return ()


@pytest.fixture
def queue(host, monkeypatch):
    """Runs a graph of one subject with faces: (the cast or None, the errors, what the nodes said).

    The same executor every time.
    """
    import execution
    import server
    from troupe.nodes import NODES

    import nodes

    said = []

    class Server:
        client_id = last_node_id = last_prompt_id = None

        def send_sync(self, event, data, *args):
            if event == "executed" and data["node"] == "faces":
                said.extend(json.loads(data["output"]["troupe_messages"][0])["warnings"])

        def queue_updated(self):
            pass

    monkeypatch.setattr(server.PromptServer, "instance", Server(), raising=False)
    for cls in NODES:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.GET_SCHEMA().node_id, cls)
    for cls in (Vectors, Photo, Keep):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
    for kind in ("INSIGHTFACE", "FACEANALYSIS", "ANALYSIS_MODELS", "MODEL"):
        monkeypatch.setitem(
            nodes.NODE_CLASS_MAPPINGS, f"Load{kind}", type(f"Load{kind}", (Loader,), {"RETURN_TYPES": (kind,)})
        )
    executor = prompt_executor(Server())
    ANALYSER.calls = 0

    def go(kind="INSIGHTFACE", name="woman", **inputs):
        add = {
            "weight": 1.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "image": ["photo", 0],
            "faces": ["faces", 0],
            "name": name,
        }
        given = {"analysis": ["analysis", 0]} if kind else {}
        graph = {
            "photo": {"class_type": "Photo", "inputs": {}},
            "vectors": {"class_type": "Vectors", "inputs": {}},
            "faces": {
                "class_type": "TroupeFaces",
                "inputs": {"image": ["photo", 0], "pick": "largest", **given, **inputs},
            },
            "add": {"class_type": "TroupeAddSubject", "inputs": add},
            "keep": {"class_type": "Keep", "inputs": {"cast": ["add", 0]}},
            **({"analysis": {"class_type": f"Load{kind}", "inputs": {}}} if kind else {}),
        }
        Keep.got.clear()
        said.clear()
        valid, error, outputs, faults = asyncio.run(execution.validate_prompt("1", graph, None))
        if not valid:
            return None, [f"{e['type']}: {e['details']}" for fault in faults.values() for e in fault["errors"]], said
        executor.execute(graph, "1", {"client_id": "a browser"}, outputs)
        failures = [
            data["exception_message"].strip() for event, data in executor.status_messages if event == "execution_error"
        ]
        return (Keep.got[0] if Keep.got else None), failures, said

    return go


@pytest.mark.parametrize("kind", ["INSIGHTFACE", "FACEANALYSIS", "ANALYSIS_MODELS"])
def test_analysers_of_known_packs_can_be_wired(queue, kind):
    cast, errors, said = queue(kind)
    assert errors == []
    faces = cast.subjects[0].faces
    torch.testing.assert_close(faces.vectors, torch.from_numpy(LONG / np.linalg.norm(LONG))[None])
    torch.testing.assert_close(faces.crops, photo(260, 270, seed=1)[:, 10:234, 10:234], rtol=0, atol=1e-4)
    [sentence] = said
    assert "'glintr100'" in sentence


def test_the_host_refuses_another_kind_of_wire(queue):
    _, errors, _ = queue("MODEL")
    assert len(errors) == 1 and "return_type_mismatch" in errors[0] and "INSIGHTFACE" in errors[0]


def test_vectors_of_any_type_can_be_wired(queue):
    cast, errors, said = queue(embeds=["vectors", 0])
    assert errors == [] and not said
    assert torch.equal(cast.subjects[0].faces.vectors, torch.eye(1, 512))


def test_a_second_run_does_not_ask_the_analyser_again(queue):
    first, _, _ = queue()
    second, errors, _ = queue(name="man")
    assert errors == [] and (first.subjects[0].name, second.subjects[0].name) == ("woman", "man")
    assert ANALYSER.calls == 1 and second.subjects[0].faces is first.subjects[0].faces


def test_nothing_wired_is_a_sentence_on_the_node(queue):
    cast, errors, _ = queue(kind=None)
    assert cast is None and len(errors) == 1
    assert errors[0].startswith(
        "Expected an analyser in 'analysis', or both face vectors in 'embeds' and aligned faces in 'crops', found none."
    )


def test_photos_of_other_sizes_go_with_add_subjects():
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.prepare_faces import PrepareFaces

    photos = {
        "image": photo(260, 270, seed=1),
        "same_subject_2": photo(300, 240, seed=2),
        "same_subject_4": photo(240, 240, seed=4),
    }
    (faces,) = run(PrepareFaces, **photos, pick="first", analysis=Analyser())
    settings = {"name": "woman", "weight": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    (cast,) = run(AddSubject, **photos, **settings, faces=faces)
    assert cast.subjects[0].faces is faces
    for crop, image in zip(faces.crops, photos.values(), strict=True):
        torch.testing.assert_close(crop, image[0, 10:234, 10:234], rtol=0, atol=1e-4)
    with pytest.raises(
        SubjectError, match="one prepared face for each of the 1 photos of subject 1 .'woman'., found 3"
    ):
        run(AddSubject, image=photos["image"], **settings, faces=faces)
