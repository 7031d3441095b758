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
from troupe.evaluation.scores.features import DinoFeatures, EncoderFeatures, dino_pixels_of
from troupe.evaluation.scores.making import PRESETS, ScoreSettings, make_scorers, model_names
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
from troupe.evaluation.tasks import Method, Subject, Task
from troupe.model_patches.errors import TroupeError
from troupe.model_patches.scores.colours import ColourPictures
from troupe.model_patches.scores.places import SubjectPlace
from troupe.model_patches.subjects import Box
from troupe.training.data.models import ClipFeatures
from troupe.training.data.pictures import PictureFault

PROMPT = "a cat beside a dog"
PHOTOS = (("a/0.png", "a/1.png"), ("b/0.png",))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for i, photo in enumerate(photo for photos in PHOTOS for photo in photos):
        fake.save_photo(place / photo, i, (300 + 20 * i, 280))
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    makers = {"clip": tiny.save_clip, "dino": tiny.save_dino, "dinov2": tiny.save_dinov2}
    return {name: str(make(place / name)) for name, make in makers.items()}


@pytest.fixture
def painted(tmp_path):
    subjects = tuple(Subject(name, photos[:1]) for name, photos in zip(("cat", "dog"), PHOTOS, strict=True))
    picture = Image.open(fake.save_photo(tmp_path / "picture.png", 99, (320, 290))).convert("RGB")
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


def clip_in_double(model, processor, picture=None, text=None):
    with torch.no_grad():
        if text is not None:
            inputs = processor(text=[text], return_tensors="pt", padding=True, truncation=True)
            output = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            return model.text_projection(output.pooler_output)[0].numpy()
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"].double()
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].numpy()


def test_clip(models, folder, painted):
    from transformers import CLIPModel, CLIPProcessor

    scorer = WholePicture("clip_i", ClipFeatures.load(models["clip"], "cpu"), folder, texts=True)
    found = scorer(painted)
    assert scorer.columns == tuple(found) == ("clip_i", "clip_t", "clip_t_times_2_5")
    model, processor = CLIPModel.from_pretrained(models["clip"]).double(), CLIPProcessor.from_pretrained(models["clip"])
    vector = clip_in_double(model, processor, painted.picture)
    expected, _ = mean_over_subjects(vector, folder, lambda picture: clip_in_double(model, processor, picture))
    assert found["clip_i"] == pytest.approx(expected, abs=1e-5)
    text = cosine(vector, clip_in_double(model, processor, text=PROMPT))
    assert found["clip_t"] == pytest.approx(text, abs=1e-5)
    assert found["clip_t_times_2_5"] == pytest.approx(2.5 * max(text, 0), abs=1e-5)


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
    # as in DreamBooth's and MIP-Adapter's evaluations
    bicubic = InterpolationMode.BICUBIC
    prepare = Compose([Resize(256, interpolation=bicubic), CenterCrop(224), ToTensor(), IMAGENET])

    def encode(picture):
        with torch.no_grad():
            return model(pixel_values=prepare(picture)[None].double()).last_hidden_state[0, 0].numpy()

    torch.testing.assert_close(dino_pixels_of(painted.picture), prepare(painted.picture), atol=1e-6, rtol=0)
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
        expected = model(dino_pixels_of(painted.picture)[None])[0]
    found = DinoFeatures.load(models["dino"], "cpu").pictures([painted.picture])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def QKV(names):
    return ("q_proj.", "k_proj.", "v_proj.") if any("q_proj" in name for name in names) else ("query", "key", "value")


def OUT(names):
    return "o_proj" if any("o_proj" in name for name in names) else "attention.output"


def MLP(names):
    return ("fc1", "fc2") if any("fc1" in name for name in names) else ("intermediate", ".output.dense")


def test_dinov2_and_the_collapse_rate(models, folder, painted):
    from transformers import BitImageProcessor, Dinov2Model

    scorer = WholePicture("dinov2", DinoFeatures.load(models["dinov2"], "cpu"), folder, collapse=True)
    found = scorer(painted)
    assert scorer.columns == tuple(found) == ("dinov2", "scr_0.4", "scr_0.5", "scr_0.6")
    model = Dinov2Model.from_pretrained(models["dinov2"]).double()
    processor = BitImageProcessor.from_pretrained(models["dinov2"])

    def encode(picture):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"].double()
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

    def places(self, picture, names):
        return [[SubjectPlace(box, "detector") for box in own] for own in self.boxes]


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


def test_object_quality_of_found_subjects(models, folder, painted):
    from transformers import CLIPModel, CLIPProcessor

    clip = ClipFeatures.load(models["clip"], "cpu")
    found = FoundQuality(Found([LEFT], [SMALL]), clip)(painted)["object_quality"]
    model, processor = CLIPModel.from_pretrained(models["clip"]).double(), CLIPProcessor.from_pretrained(models["clip"])
    crops = [painted.picture.crop((0, 0, 160, 290)), painted.picture.crop((32, 29, 128, 116))]
    images = [clip_in_double(model, processor, one) for one in crops]
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
    assert rehearsal[:2] == ["clip_i", "colours"] and "truth_right" in rehearsal and "clip_t" not in rehearsal
    assert len(set(rehearsal)) == len(rehearsal)


def test_grounding_dino_finds_subjects(tmp_path, painted, folder):
    from troupe.evaluation.scores.detectors import GroundingDetector
    from troupe.training.data.models import GroundingDino

    model = GroundingDino.load(str(tiny.save_grounding_dino(tmp_path / "detector")), "cpu", 0.0)
    places = GroundingDetector(model).places(painted.picture, ["cat", "dog", "cat"])
    asked = model([painted.picture], [["cat", "dog"]])[0]
    for name, own in zip(("cat", "dog", "cat"), places, strict=True):
        assert [place.box for place in own] == [one.box for one in asked if one.word == name][:3]
    assert any(places)


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
