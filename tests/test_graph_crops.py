"""Which runs sample a part of the picture, told by the graph. Class names are those of published packs."""

import pytest
from troupe.model_patches.prompt.graph_crops import samples_a_part


def node(kind: str, **inputs: object) -> dict:
    """A node of an API prompt; ('3', 1) is output 1 of node 3."""
    return {
        "class_type": kind,
        "inputs": {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()},
    }


def sampled(cut: str, paste: str, between: dict | None = None, cut_out: int = 0, **more: object) -> dict:
    """Photo 1, cut 2, encoder 3, sampler 4, decoder 5, paste 6; between: a node 9 between cut and encoder; more:
    further inputs of the paste.
    """
    made = {
        "1": node("LoadImage", image="a.png"),
        "2": node(cut, image=("1", 0)),
        "3": node("VAEEncode", pixels=("9", 0) if between else ("2", cut_out)),
        "4": node("KSampler", latent_image=("3", 0), seed=1),
        "5": node("VAEDecode", samples=("4", 0)),
        "6": node(paste, image=("5", 0), **more),
    }
    return {**made, "9": between} if between else made


@pytest.mark.parametrize(
    "kind",
    [
        "UltimateSDUpscale",
        "UltimateSDUpscaleNoUpscale",
        "FaceDetailer",
        "FaceDetailerPipe",
        "DetailerForEachDebug",
        "SEGSDetailer",
        "SEGSUpscalerPipe",
        "BNK_TiledKSampler",
        "easy detailerFix",
        "Mikey Sampler Tiled",
    ],
)
def test_nodes_that_cut_and_paste_themselves(kind):
    made = {"1": node(kind, image=("2", 0)), "2": node("LoadImage", image="a.png"), "5:3": node(kind)}
    assert samples_a_part(made, "1") == f"{kind} (node 1)"
    assert samples_a_part(made, "1.0.3") == f"{kind} (node 1)", "a node that this one has put there"
    assert samples_a_part(made, "5:3.0.0.2") == f"{kind} (node 5:3)", "in a subgraph"


@pytest.mark.parametrize(
    ("how", "kind", "name"),
    [
        ("Tiled Upscaler Script", "KSampler (Efficient)", "script"),
        ("PixelTiledKSampleUpscalerProviderPipe", "IterativeImageUpscale", "upscaler"),
    ],
)
def test_samplers_that_are_told_to(how, kind, name):
    assert samples_a_part({"1": node(how), "2": node(kind, **{name: ("1", 0)})}, "2") == f"{how} (node 1)"
    assert samples_a_part({"1": node(how), "2": node(kind, model=("1", 0))}, "2") == ""


@pytest.mark.parametrize(
    "made",
    [
        sampled("InpaintCropImproved", "InpaintStitchImproved", cut_out=1, stitcher=("2", 0)),
        sampled("ImageCrop", "ImageCompositeMasked", destination=("1", 0)),
        sampled("LatentCrop", "LatentComposite", samples_to=("1", 0)),
        sampled("easy imageCropFromMask", "easy imageUncropFromBBOX", original_image=("1", 0)),
        sampled("LayerUtility: CropByMask V2", "LayerUtility: RestoreCropBox", crop_box=("2", 2)),
        sampled("Bounded Image Crop with Mask", "Bounded Image Blend with Mask", target=("1", 0)),
        sampled("PrepareImageAndMaskForInpaint", "OverlayInpaintedImage", original=("1", 0)),
        sampled("MaskCrop_YC", "MaskCropRestore_YC", background=("1", 0)),
        sampled("TTP_Image_Tile_Batch", "TTP_Image_Assy", positions=("2", 1)),
        sampled("Divide Image and Select Tile", "Combine Tiles"),
        sampled("SplitImageToTileList", "ImageMergeTileList"),
        sampled("ImageTile+", "ImageUntile+"),
        sampled("easy imageSplitTiles", "easy imageTilesFromBatch"),
        *(
            sampled("InpaintCropImproved", "InpaintStitchImproved", node(kind, **{name: ("2", 1)}), stitcher=("2", 0))
            for kind, name in (
                ("Any Switch (rgthree)", "any_01"),
                ("ImpactSwitch", "input1"),
                ("ComfySwitchNode", "on_true"),
                ("easy cleanGpuUsed", "anything"),
                ("ImageScale", "image"),
            )
        ),
    ],
    ids=lambda made: (
        f"{made['2']['class_type']}, {made['6']['class_type']}{', ' + made['9']['class_type'] if '9' in made else ''}"
    ),
)
def test_a_cut_that_is_pasted_back_after_it_was_sampled(made):
    assert samples_a_part(made, "4") == f"{made['2']['class_type']} (node 2)"


def later(made: dict, **nodes: dict) -> dict:
    """With further nodes; 'n7' is node 7."""
    return {**made, **{name.removeprefix("n"): entry for name, entry in nodes.items()}}


WHOLE = {
    "img2img": sampled("ImageScale", "ImageSharpen"),
    "cropped once for all": sampled("ImageCrop", "SaveImage"),
    "cropped, a logo on it": later(
        sampled("ImageCrop", "ImageCompositeMasked", destination=("7", 0)), n7=node("LoadImage", image="logo.png")
    ),
    "cropped, beside the original": sampled("ImageCrop", "ImageStitch", image1=("1", 0)),
    "cropped, unmasked pixels kept": sampled("ImageCrop", "ImageCompositeMasked", destination=("2", 0)),
    "cropped, a video made": sampled("ImageCrop", "VHS_MergeImages", images_B=("1", 0)),
    "a tiled decoder": later(
        sampled("VAEEncodeTiled", "ImageCompositeMasked", destination=("1", 0)),
        n5=node("VAEDecodeTiled", samples=("4", 0)),
    ),
    "a face is cut out of it later": later(
        sampled("ImageCrop", "InpaintCropImproved"),
        n7=node("VAEEncode", pixels=("6", 1)),
        n8=node("KSampler", latent_image=("7", 0)),
        n10=node("VAEDecode", samples=("8", 0)),
        n11=node("InpaintStitchImproved", stitcher=("6", 0), inpainted_image=("10", 0)),
    ),
    "pasted together before": later(
        sampled("BatchUncrop", "InpaintCropImproved"),
        n0=node("ImageCrop", image=("1", 0)),
        n2=node("BatchUncrop", original_images=("1", 0), cropped=("0", 0)),
        n7=node("InpaintStitchImproved", stitcher=("6", 0)),
    ),
    "a crop of a reference picture": later(
        sampled("ImageScale", "ImageCompositeMasked", destination=("1", 0)),
        n7=node("ImageCrop", image=("1", 0)),
        n8=node("TroupeAddSubject", image=("7", 0)),
        n4=node("KSampler", latent_image=("3", 0), model=("8", 0)),
    ),
    "a sampler with a tiled decoder of its own": {"4": node("easy kSamplerTiled", pipe=("9", 0))},
}


@pytest.mark.parametrize("what", WHOLE)
def test_runs_on_a_picture_of_its_own(what):
    assert samples_a_part(WHOLE[what], "4") == ""


def test_the_pass_on_the_cut_face_is_one_of_a_part():
    assert samples_a_part(WHOLE["a face is cut out of it later"], "8") == "InpaintCropImproved (node 6)"


def test_a_node_in_a_loop_has_its_own_id_last():
    made = sampled("ImageCrop", "ImageCompositeMasked", destination=("1", 0))
    assert samples_a_part({**made, "8": node("easy forLoopEnd")}, "8.0.0.4") == "ImageCrop (node 2)"


def test_circles_unknown_nodes_and_no_graph_at_all():
    circle = {
        "1": node("KSampler", latent_image=("2", 0)),
        "2": node("ImageCrop", image=("1", 0)),
        "3": node("ImageCompositeMasked", source=("1", 0), destination=("2", 0)),
    }
    assert samples_a_part(circle, "1") == ""
    assert samples_a_part(circle, "7") == samples_a_part(None, "1") == samples_a_part({}, "") == ""
