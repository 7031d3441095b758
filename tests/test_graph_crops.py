"""Which runs sample a part of the picture, told by the graph."""
import pytest
from troupe.model_patches.prompt.graph_crops import samples_a_part


def graph(*nodes: tuple, **more: tuple) -> dict:
    """(class, inputs by name as 'node id' or a value) -> an API prompt with ids from 1 on."""
    return {str(i): {"class_type": kind, "inputs": {name: [value, 0] if isinstance(value, str) else value for name, value in inputs.items()}}
            for i, (kind, inputs) in enumerate(nodes, 1)}


def sampled(*before: tuple, after: tuple = ()) -> tuple[dict, str]:
    """A row of nodes that each take the one before as their picture, with a sampler, and what comes after it; the sampler's id."""
    row = [("LoadImage", {"image": 1}), *((kind, {"image": str(i)}) for i, (kind,) in enumerate(before, 1))]
    sampler = len(row) + 1
    row.append(("KSampler", {"latent_image": str(len(row)), "seed": 1}))
    row += [(kind, {"image": str(len(row) + i)}) for i, (kind,) in enumerate(after)]
    return graph(*row), str(sampler)


@pytest.mark.parametrize("kind", ["UltimateSDUpscale", "UltimateSDUpscaleNoUpscale", "FaceDetailer", "FaceDetailerPipe", "DetailerForEachDebug", "SEGSDetailer", "TiledKSampler"])
def test_nodes_that_cut_and_paste_themselves(kind):
    made = graph((kind, {"image": "2"}), ("LoadImage", {"image": 1}))
    assert samples_a_part(made, "1") == f"{kind} (node 1)"
    assert samples_a_part(made, "1.0.3") == f"{kind} (node 1)", "a node that this one has put there"


@pytest.mark.parametrize(("cut", "paste"), [
    ("InpaintCropImproved", "InpaintStitchImproved"), ("ImageCrop", "ImageCompositeMasked"), ("LatentCrop", "LatentComposite"), ("Crop Face", "Uncrop Face"),
    ("Image Crop Location", "Image Paste Crop"), ("TTP_Image_Tile_Batch", "TTP_Image_Assy"),
])
def test_a_cut_that_is_pasted_after_it_was_sampled(cut, paste):
    made, sampler = sampled((cut,), ("VAEEncode",), after=(("VAEDecode",), (paste,)))
    if paste == "TTP_Image_Assy":
        made = {id_: {**node, "class_type": "ImageAssemble" if node["class_type"] == paste else node["class_type"]} for id_, node in made.items()}
    assert samples_a_part(made, sampler) == f"{cut} (node 2)"


@pytest.mark.parametrize(("before", "after"), [
    ([("VAEEncode",)], [("VAEDecode",), ("SaveImage",)]),
    ([("ImageCrop",), ("VAEEncode",)], [("VAEDecode",), ("SaveImage",)]),
    ([("VAEEncodeTiled",)], [("VAEDecodeTiled",), ("ImageCompositeMasked",)]),
    ([("LatentUpscale",)], [("VAEDecode",), ("ImageScale",)]),
    ([("VAEEncode",)], [("VAEDecode",), ("ImageCrop",), ("ImageCompositeMasked",)]),
], ids=["the whole picture", "cropped once for all", "a tiled decoder", "a second pass", "cropped after it"])
def test_runs_on_a_picture_of_its_own(before, after):
    assert samples_a_part(*sampled(*before, after=tuple(after))) == ""


def test_a_crop_of_a_reference_picture_is_none_of_the_sampled_one():
    made, sampler = sampled(("VAEEncode",), after=(("VAEDecode",), ("ImageCompositeMasked",)))
    made["90"] = {"class_type": "ImageCrop", "inputs": {"image": ["1", 0]}}
    made["91"] = {"class_type": "TroupeAddSubject", "inputs": {"image": ["90", 0]}}
    made[sampler]["inputs"]["model"] = ["91", 0]
    assert samples_a_part(made, sampler) == ""


def test_circles_unknown_nodes_and_no_graph_at_all():
    circle = graph(("KSampler", {"latent_image": "2"}), ("ImageCrop", {"image": "1"}))
    assert samples_a_part(circle, "1") == ""
    assert samples_a_part(circle, "7") == samples_a_part(None, "1") == samples_a_part({}, "") == ""
