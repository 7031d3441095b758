"""Scores of an evaluation equal the formulas of the benchmarks, evaluated in float64 on random weights, and
torchmetrics.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_benchmarks as fake
from support import tiny_annotators as tiny
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from troupe.evaluation.scores.detectors import GroundingDetector, OncePerPicture
from troupe.evaluation.scores.features import DinoFeatures, EncoderFeatures, PilClip
from troupe.evaluation.scores.making import PRESETS, ScoreSettings, make_scorers, model_names
from troupe.evaluation.scores.pixels import DINO_READING, Reading, read_picture, reading_of
from troupe.evaluation.scores.scores import (
    COLLAPSE,
    FoundQuality,
    ObjectRelevance,
    Painted,
    PlacedSubjects,
    WholePicture,
    collapse_rate,
    columns_of,
    object_relevance,
)
from troupe.evaluation.suites.suite import Case, SuiteError
from troupe.evaluation.tasks import Method, Task, TaskSubject
from troupe.model_patches.errors import TroupeError
from troupe.model_patches.scores.colours import ColourPictures
from troupe.model_patches.scores.regions import SubjectRegion
from troupe.model_patches.subjects import Box
from troupe.training.data.models import ClipFeatures
from troupe.training.data.pictures import PictureFault

PROMPT = "a cat beside a dog"
PHOTOS = (("a/0.png", "a/1.png"), ("b/0.png",))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ODD = (310, 280)  # pixels: with a shorter side of 32 the border of the middle is 3, with 256 it is 59


def save_coarse(path, seed, size):
    """Save a picture of large spots of strong colours, that networks tell apart, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spots = np.random.default_rng(seed).integers(0, 2, (7, 6, 3)).astype(np.uint8) * 255
    Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    region = tmp_path_factory.mktemp("photos")
    for i, photo in enumerate(photo for photos in PHOTOS for photo in photos):
        save_coarse(region / photo, i, (ODD[0] + 20 * i, ODD[1]))
    return region


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    region = tmp_path_factory.mktemp("models")
    makers = {"clip": tiny.save_clip, "dino": tiny.save_dino, "dinov2": tiny.save_dinov2}
    return {name: str(make(region / name)) for name, make in makers.items()}


@pytest.fixture
def painted(tmp_path):
    subjects = tuple(TaskSubject(name, photos[:1]) for name, photos in zip(("cat", "dog"), PHOTOS, strict=True))
    picture = Image.open(save_coarse(tmp_path / "picture.png", 99, (320, 290))).convert("RGB")
    task = Task("suite", "case", Method("m"), PROMPT, subjects, 0)
    return Painted(task, Case("case", PROMPT, subjects, "case", PHOTOS), picture)


def pictures(folder, photos):
    return [Image.open(folder / photo).convert("RGB") for photo in photos]


def cosine(one, other):
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def mean_over_subjects(vector, folder, encode):
    """Mean over subjects of the mean cosine over each subject's photos, and each subject's mean."""
    each = [np.mean([cosine(vector, encode(picture)) for picture in pictures(folder, photos)]) for photos in PHOTOS]
    return float(np.mean(each)), each


def as_torchvision(picture, resized, size, normalize):
    """The transforms of DreamBooth's, MIP-Adapter's and OpenAI's evaluations, on the PIL picture."""
    resize = Resize(resized, interpolation=InterpolationMode.BICUBIC)
    return Compose([resize, CenterCrop(size), ToTensor(), normalize])(picture)


def as_transformers(picture, kind, folder):
    """The processor in a model's folder as it was when DreamBench++ was published: with PIL."""
    import transformers

    by_pil = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    return by_pil.from_pretrained(folder)(images=picture, return_tensors="pt")["pixel_values"][0]


def clip_in_double(model, processor, pixels=None, text=None):
    with torch.no_grad():
        if text is not None:
            inputs = processor(text=[text], return_tensors="pt", padding=True, truncation=True)
            output = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            return model.text_projection(output.pooler_output)[0].numpy()
        return model.visual_projection(model.vision_model(pixel_values=pixels[None].double()).pooler_output)[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "cut_down"), [("mip_adapter", False), ("dreambench++", True)])
def test_clip(models, folder, painted, preset, cut_down):
    """On pictures as that benchmark's own evaluation reads them."""
    from transformers import CLIPModel, CLIPProcessor

    off = {"dino": "off", "dinov2": "off", "detector": "off"}
    [scorer] = make_scorers(ScoreSettings(preset, clip=models["clip"], **off), "other", folder)
    found = scorer(painted)
    assert scorer.columns == tuple(found) == ("clip_i", "clip_t", "clip_t_times_2_5")
    assert isinstance(scorer.features, PilClip)
    model, processor = CLIPModel.from_pretrained(models["clip"]).double(), CLIPProcessor.from_pretrained(models["clip"])

    def encode(picture):
        if cut_down:
            return clip_in_double(model, processor, as_transformers(picture, "CLIPImageProcessor", models["clip"]))
        return clip_in_double(model, processor, as_torchvision(picture, 32, 32, Normalize(*OPENAI)))

    vector = encode(painted.picture)
    expected, _ = mean_over_subjects(vector, folder, encode)
    assert found["clip_i"] == pytest.approx(expected, abs=1e-5)
    text = cosine(vector, clip_in_double(model, processor, text=PROMPT))
    assert found["clip_t"] == pytest.approx(text, abs=1e-5)
    assert found["clip_t_times_2_5"] == pytest.approx(2.5 * max(text, 0), abs=1e-5)


@pytest.mark.parametrize("size", [(1024, 1024), (640, 427), (427, 640), (200, 181), (224, 224), (225, 224)])
def test_pictures_are_read_as_torchvision_and_as_transformers_read_them(size):
    from transformers import CLIPImageProcessor

    coarse = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    clip = Reading(224, 224, *OPENAI)
    by_torchvision = as_torchvision(picture, 224, 224, Normalize(*OPENAI))
    torch.testing.assert_close(read_picture(picture, clip), by_torchvision, atol=1e-6, rtol=0)
    expected = as_torchvision(picture, 256, 224, IMAGENET)
    torch.testing.assert_close(read_picture(picture, DINO_READING), expected, atol=1e-6, rtol=0)
    transformers = getattr(__import__("transformers"), "CLIPImageProcessorPil", CLIPImageProcessor)()
    by_transformers = transformers(images=picture, return_tensors="pt")["pixel_values"][0]
    cut_down = dataclasses.replace(clip, cut_down=True)
    torch.testing.assert_close(read_picture(picture, cut_down), by_transformers, atol=1e-6, rtol=0)
    if size == (640, 427):
        assert (by_torchvision - by_transformers).abs().mean() > 0.1, "a border of 111 pixels: 56 or 55 at the left"


def test_a_processor_that_asks_for_something_else_reads_by_itself(models):
    from transformers import CLIPImageProcessor

    usual = CLIPImageProcessor()
    assert reading_of(usual, True) == Reading(224, 224, *OPENAI, True)
    for changes in ({"do_center_crop": False}, {"resample": 2}, {"size": {"height": 8, "width": 8}}):
        assert reading_of(CLIPImageProcessor(**changes), False) is None
    strange = PilClip.load(models["clip"], "cpu")
    expected = strange.pictures([Image.new("RGB", (40, 40), (9, 80, 200))])
    strange.reading = None
    torch.testing.assert_close(strange.pictures([Image.new("RGB", (40, 40), (9, 80, 200))]), expected)


@pytest.mark.slow
def test_photos_as_they_are_stored(models, folder, painted, tmp_path):
    """MIP-Adapter's evaluation does not turn them as their EXIF data ask for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / PHOTOS[0][0]).save(tmp_path / "turned.png", exif=exif)
    Image.open(folder / PHOTOS[0][0]).save(tmp_path / "plain.png")
    found = {}
    for name in ("turned", "plain"):
        subjects = (TaskSubject("cat", (f"{name}.png",)),)
        one = dataclasses.replace(painted, case=Case("case", PROMPT, subjects, "case"))
        for upright in (True, False):
            settings = ScoreSettings("none", clip=models["clip"])
            [scorer] = make_scorers(settings, "other", tmp_path, upright=upright)
            found[name, upright] = scorer(one)["clip_i"]
    assert found["turned", False] == found["plain", False] == found["plain", True]
    assert abs(found["turned", True] - found["plain", True]) > 1e-4


@pytest.mark.slow
def test_clip_is_that_of_torchmetrics(models, folder, painted):
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPProcessor

    def clip():
        model = CLIPModel.from_pretrained(models["clip"])
        for side in ("get_image_features", "get_text_features"):  # an object since transformers 5
            setattr(model, side, as_tensors(getattr(model, side)))
        return model, CLIPProcessor.from_pretrained(models["clip"])

    found = WholePicture("clip_i", ClipFeatures.load(models["clip"], "cpu"), folder, texts=True)(painted)
    pixels = torch.from_numpy(np.array(painted.picture)).permute(2, 0, 1)
    text = clip_score(pixels, PROMPT, clip).item()
    assert max(found["clip_t"], 0) == pytest.approx(text / 100, abs=1e-4)
    each = []
    for photos in PHOTOS:
        others = [torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures(folder, photos)]
        each.append(np.mean([clip_score(pixels, one, clip).item() / 100 for one in others]))
    assert found["clip_i"] == pytest.approx(float(np.mean(each)), abs=1e-4)


def as_tensors(encode):
    def encoded(*args, **options):
        output = encode(*args, **options)
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    return encoded


def test_dino(models, folder, painted):
    from transformers import ViTModel

    scorer = WholePicture("dino", DinoFeatures.load(models["dino"], "cpu"), folder)
    assert scorer.columns == ("dino",)
    model = ViTModel.from_pretrained(models["dino"], add_pooling_layer=False).double()

    def encode(picture):
        with torch.no_grad():
            pixels = as_torchvision(picture, 256, 224, IMAGENET)[None].double()
            return model(pixel_values=pixels).last_hidden_state[0, 0].numpy()

    expected, _ = mean_over_subjects(encode(painted.picture), folder, encode)
    assert scorer(painted)["dino"] == pytest.approx(expected, abs=1e-5)


def test_dino_is_that_of_timm(models, painted):
    """The CLS token of timm's ViT with the same weights."""
    timm = pytest.importorskip("timm")
    from transformers import ViTModel

    source = ViTModel.from_pretrained(models["dino"], add_pooling_layer=False).state_dict()
    model = timm.models.VisionTransformer(
        img_size=224, patch_size=56, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=0, global_pool="token"
    ).eval()
    state = model.state_dict()
    # tensors in the order of both networks, queries, keys and values of a layer in one
    renamed = {key: value for key, value in source.items()}
    own = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    own |= {f"patch_embed.proj.{part}": f"embeddings.patch_embeddings.projection.{part}" for part in ("weight", "bias")}
    own |= {f"norm.{part}": f"layernorm.{part}" for part in ("weight", "bias")}
    filled = {key: renamed[value] for key, value in own.items()}
    for layer in range(2):
        names = [key for key in renamed if f"layers.{layer}." in key or f"layer.{layer}." in key]

        def pick(*parts, names=names):
            [key] = [name for name in names if all(part in name for part in parts)]
            return renamed[key]

        for part in ("weight", "bias"):
            attention = [pick(one, part) for one in QKV(names)]
            filled[f"blocks.{layer}.attn.qkv.{part}"] = torch.cat(attention)
            filled[f"blocks.{layer}.attn.proj.{part}"] = pick(OUT(names), part)
            filled[f"blocks.{layer}.norm1.{part}"] = pick("layernorm_before", part)
            filled[f"blocks.{layer}.norm2.{part}"] = pick("layernorm_after", part)
            first, second = MLP(names)
            filled[f"blocks.{layer}.mlp.fc1.{part}"] = pick(first, part)
            filled[f"blocks.{layer}.mlp.fc2.{part}"] = pick(second, part)
    assert filled.keys() == state.keys()
    model.load_state_dict(filled)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12
    with torch.no_grad():
        expected = model(as_torchvision(painted.picture, 256, 224, IMAGENET)[None])[0]
    found = DinoFeatures.load(models["dino"], "cpu").pictures([painted.picture])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def QKV(names):
    return ("q_proj.", "k_proj.", "v_proj.") if any("q_proj" in name for name in names) else ("query", "key", "value")


def OUT(names):
    return "o_proj" if any("o_proj" in name for name in names) else "attention.output"


def MLP(names):
    return ("fc1", "fc2") if any("fc1" in name for name in names) else ("intermediate", ".output.dense")


def test_dinov2_and_the_collapse_rate(models, folder, painted):
    from transformers import Dinov2Model

    scorer = WholePicture("dinov2", DinoFeatures.load(models["dinov2"], "cpu"), folder, collapse=True)
    found = scorer(painted)
    assert scorer.columns == tuple(found) == ("dinov2", "scr_0.4", "scr_0.5", "scr_0.6")
    model = Dinov2Model.from_pretrained(models["dinov2"]).double()

    def encode(picture):
        pixels = as_transformers(picture, "BitImageProcessor", models["dinov2"])[None].double()
        with torch.no_grad():
            return model(pixel_values=pixels).last_hidden_state[0, 0].numpy()

    expected, each = mean_over_subjects(encode(painted.picture), folder, encode)
    assert found["dinov2"] == pytest.approx(expected, abs=1e-5)
    for threshold in COLLAPSE:
        assert found[f"scr_{threshold}"] == sum(one < threshold for one in each) / 2


def test_the_collapse_rate_counts_subjects():
    likeness = torch.tensor([0.39, 0.41, 0.55, 0.61])
    assert [collapse_rate(likeness, one) for one in COLLAPSE] == [0.25, 0.5, 0.75]
    assert collapse_rate(torch.tensor([0.5]), 0.5) == 0.0, "at the threshold it has not collapsed"


class Found:
    """A detector that finds what it is given."""

    name = "given"

    def __init__(self, *boxes):
        self.boxes = boxes

    def regions(self, picture, names):
        return [[SubjectRegion(box, "detector") for box in own] for own in self.boxes]


def test_several_scorers_of_one_picture_look_once():
    asked = []

    class Asked(Found):
        def regions(self, picture, names):
            asked.append((picture, tuple(names)))
            return super().regions(picture, names)

    one, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    detector = OncePerPicture(Asked([LEFT], [RIGHT]))
    places = [[region.box for region in own] for own in detector.regions(one, ["cat", "dog"])]
    assert places == [[LEFT], [RIGHT]] and detector.name == "given"
    assert detector.regions(one, ["cat", "dog"]) is detector.regions(one, ("cat", "dog"))
    detector.regions(one, ["dog", "cat"])
    detector.regions(other, ["dog", "cat"])
    detector.regions(one, ["dog", "cat"])
    assert [(id(picture), names[0]) for picture, names in asked] == [
        *((id(one), "cat"), (id(one), "dog")),
        *((id(other), "dog"), (id(one), "dog")),
    ]


LEFT, RIGHT, SMALL = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 1.0), Box(0.1, 0.1, 0.3, 0.3)


def test_ip_sim_is_the_best_instance_and_0_for_a_missing_subject(folder, painted):
    features = EncoderFeatures(ColourPictures())

    def ip_sim(*boxes):
        return PlacedSubjects(Found(*boxes), features, folder)(painted)["ip_sim"]

    alone = [ip_sim([box], []) for box in (LEFT, RIGHT, SMALL)]
    assert len(set(alone)) == 3
    assert ip_sim([LEFT, RIGHT, SMALL], []) == pytest.approx(max(alone), abs=1e-6)
    assert ip_sim([], []) == 0.0
    assert ip_sim([LEFT], [RIGHT]) == pytest.approx(alone[0] + ip_sim([], [RIGHT]))


def test_ip_sim_in_double(models, folder, painted):
    """Crop, pad with white to a square, DINO's CLS, mean cosine over the photos."""
    features = DinoFeatures.load(models["dino"], "cpu")
    found = PlacedSubjects(Found([LEFT], [RIGHT]), features, folder)(painted)["ip_sim"]
    each = []
    for box, photos in ((LEFT, PHOTOS[0]), (RIGHT, PHOTOS[1])):
        crop = painted.picture.crop((round(box.x * 320), 0, round(box.x * 320) + 160, 290))
        square = Image.new("RGB", (290, 290), "white")
        square.paste(crop, (65, 0))
        vector = features.pictures([square.resize((224, 224), Image.Resampling.BICUBIC)])[0]
        own = [cosine(vector, features.pictures([one])[0]) for one in pictures(folder, photos)]
        each.append(np.mean(own))
    assert found == pytest.approx(float(np.mean(each)), abs=2e-3)  # resized by torch and by PIL


def test_subjects_right_sees_exchanged_subjects(folder, painted):
    sheet = Image.new("RGB", (200, 100))
    red, blue = Image.new("RGB", (100, 100), (200, 20, 20)), Image.new("RGB", (100, 100), (20, 20, 200))
    red.save(folder / "red.png")
    blue.save(folder / "blue.png")
    case = Case("case", PROMPT, painted.case.subjects, "case", (("red.png",), ("blue.png",)))
    scorer = PlacedSubjects(Found([LEFT], [RIGHT]), EncoderFeatures(ColourPictures()), folder, "_colours")
    for first, second, words in ((red, blue, "rr"), (blue, red, "ss"), (red, red, "rc")):
        sheet.paste(first, (0, 0))
        sheet.paste(second, (100, 0))
        found = scorer(Painted(painted.task, case, sheet))
        assert found["verdicts_colours"] == words
        assert found["subjects_right_colours"] == words.count("r") / 2
    missing = PlacedSubjects(Found([LEFT], []), EncoderFeatures(ColourPictures()), folder)
    assert missing(Painted(painted.task, case, sheet))["verdicts"] == "r-"


def test_subjects_right_leaves_out_the_corners_of_boxes(folder, painted):
    """As Score Subjects does with a detector's boxes; a mask says itself what is the subject."""
    size, whole = 100, torch.ones(100, 200)
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    disc = np.where((x**2 + y**2 < 1)[..., None], (200, 20, 20), (20, 20, 200)).astype(np.uint8)
    sheet = Image.fromarray(np.concatenate((disc, disc[..., ::-1]), 1))
    for name, colour in (("red.png", (200, 20, 20)), ("blue.png", (20, 20, 200))):
        Image.new("RGB", (100, 100), colour).save(folder / name)
    case = Case("case", PROMPT, painted.case.subjects, "case", (("red.png",), ("blue.png",)))
    seen = []

    class Watched(ColourPictures):
        def vectors(self, crops):
            seen.append(crops)
            return super().vectors(crops)

    class Masked(Found):
        def regions(self, picture, names):
            return [[dataclasses.replace(one, mask=whole) for one in each] for each in super().regions(picture, names)]

    shares = {}
    for kind in (Found, Masked):
        seen.clear()
        PlacedSubjects(kind([LEFT], [RIGHT]), EncoderFeatures(Watched()), folder)(Painted(painted.task, case, sheet))
        left = seen[-1][-2]  # of photos, the picture and two crops
        shares[kind] = (left[..., 2] - left[..., 0] > 0.3).float().mean().item()
    assert shares[Found] < 0.06 and 0.18 < shares[Masked] < 0.22, (
        "an ellipse leaves out 21.5 %, the blurred edge is left"
    )


def test_object_quality_of_found_subjects(models, folder, painted):
    from transformers import CLIPModel, CLIPProcessor

    clip = PilClip.load(models["clip"], "cpu")
    found = FoundQuality(Found([LEFT], [SMALL]), clip)(painted)["object_quality"]
    model, processor = CLIPModel.from_pretrained(models["clip"]).double(), CLIPProcessor.from_pretrained(models["clip"])
    crops = [painted.picture.crop((0, 0, 160, 290)), painted.picture.crop((32, 29, 128, 116))]
    images = [clip_in_double(model, processor, as_torchvision(one, 32, 32, Normalize(*OPENAI))) for one in crops]
    texts = [clip_in_double(model, processor, text=name) for name in ("cat", "dog")]
    expected = np.mean([cosine(*pair) for pair in zip(texts, images, strict=True)]) - cosine(*images)
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert FoundQuality(Found([LEFT], []), clip)(painted) == {"object_quality": None}


def test_object_relevance():
    chance = np.random.default_rng(3)
    plain, noised = chance.random((2, 30, 40, 3))
    noised[6:21, 4:24] = plain[6:21, 4:24] + 3 * (noised[6:21, 4:24] - plain[6:21, 4:24])
    difference, inside = np.abs(plain - noised).mean(-1), np.zeros((30, 40), bool)
    inside[6:21, 4:24] = True
    box = Box(0.1, 0.2, 0.5, 0.5)
    found = object_relevance(torch.from_numpy(plain), torch.from_numpy(noised), box)
    assert found == pytest.approx(difference[inside].mean() / difference[~inside].mean()) and found > 2
    assert object_relevance(torch.from_numpy(plain), torch.from_numpy(plain), box) is None
    assert object_relevance(torch.from_numpy(plain), torch.from_numpy(noised), Box(0.0, 0.0, 1.0, 1.0)) is None


def test_object_relevance_of_a_pair_of_pictures(painted, tmp_path):
    noised = dataclasses.replace(painted.task, method=Method("noised", {"noise": 1.0, "beside": "m"}))
    plain = fake.save_photo(tmp_path / "plain.png", 7, painted.picture.size)
    scorer = ObjectRelevance(Found([LEFT], []))
    found = scorer(dataclasses.replace(painted, task=noised, others={"m": plain}))["object_relevance"]
    first, second = (np.asarray(one, np.float64) for one in (Image.open(plain), painted.picture))
    difference = np.abs(first - second).mean(-1)
    assert found == pytest.approx(difference[:, :160].mean() / difference[:, 160:].mean(), abs=1e-5)
    assert scorer(painted) == {"object_relevance": None}, "painted without noise"
    missing = ObjectRelevance(Found([], [LEFT]))
    assert missing(dataclasses.replace(painted, task=noised, others={"m": plain})) == {"object_relevance": None}
    with pytest.raises(PictureFault, match="not painted yet: the picture by 'm'"):
        scorer(dataclasses.replace(painted, task=noised))


@pytest.mark.slow
def test_settings_choose_the_models(models, folder):
    assert model_names(ScoreSettings("mip_adapter")) == dict(PRESETS["mip_adapter"])
    assert model_names(ScoreSettings("dreambench++", dino="off", clip="mine")) == {
        "clip": "mine",
        "dinov2": "facebook/dinov2-small",
    }
    scorers = make_scorers(ScoreSettings("none", **models), "other", folder)
    assert columns_of(scorers) == [
        *("clip_i", "clip_t", "clip_t_times_2_5", "dino", "dinov2", "scr_0.4", "scr_0.5", "scr_0.6")
    ]
    rehearsal = columns_of(make_scorers(ScoreSettings(), "rehearsal", folder))
    assert rehearsal[:8] == [
        *("clip_i", "clip_t", "clip_t_times_2_5", "dinov2", "scr_0.4", "scr_0.5", "scr_0.6", "colours")
    ]
    assert {"ip_sim", "ip_sim_clip", "ip_sim_colours", "object_quality", "truth_prompt"} <= set(rehearsal)
    compared = columns_of(make_scorers(ScoreSettings(compare="clip"), "rehearsal", folder))
    assert [name for name in compared if name.startswith("ip_sim")] == ["ip_sim", "ip_sim_dinov2", "ip_sim_colours"]
    assert len(set(rehearsal)) == len(rehearsal)


@pytest.mark.slow
def test_grounding_dino_finds_subjects(tmp_path, painted, folder):
    from troupe.training.data.models import GroundingDino

    model = GroundingDino.load(str(tiny.save_grounding_dino(tmp_path / "detector")), "cpu", 0.0)
    regions = GroundingDetector(model).regions(painted.picture, ["cat", "dog", "cat"])
    asked = model([painted.picture], [["cat", "dog"]])[0]
    for name, own in zip(("cat", "dog", "cat"), regions, strict=True):
        assert [region.box for region in own] == [one.box for one in asked if one.word == name][:3]
    assert any(regions)


def test_bad_input(models, folder, painted, tmp_path):
    with pytest.raises(SuiteError, match="DINO or DINOv2 in .*found a model of type 'clip'"):
        DinoFeatures.load(models["clip"], "cpu")
    with pytest.raises(TroupeError, match="the model .*nowhere"):
        make_scorers(ScoreSettings("none", dino=str(tmp_path / "nowhere")), "other", folder)
    with pytest.raises(SuiteError, match="a score, found no model"):
        make_scorers(ScoreSettings("none"), "other", folder)
    with pytest.raises(SuiteError, match="a model that compares what the detector finds"):
        make_scorers(ScoreSettings("none", detector="rehearsal"), "other", folder)
    scorer = WholePicture("colours", EncoderFeatures(ColourPictures()), tmp_path)
    with pytest.raises(PictureFault, match="picture missing"):
        scorer(painted)
