"""The real host with anything wired in, and with damaged files among good ones: a sentence of ours, or a finite
picture; the lists survive every file.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.file_mutations import Bag, classes, mutated
from support.outcome_balance import ACCEPTED, both_ways
from support.published_layouts import vision_encoder
from troupe.model_patches.attention.merges import MERGES
from troupe.model_patches.errors import TroupeError
from troupe.model_patches.subjects import MAX_SUBJECTS, Box

PROFILE = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
numbers = st.one_of(
    st.floats(-0.5, 3), st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-9, float("nan"), float("inf"), -1.0, 1e6])
)
finite = numbers.filter(math.isfinite)  # others are refused when the subject is made
ranges = st.tuples(st.one_of(st.floats(0, 1), finite), st.one_of(st.floats(0, 1), finite))
places = st.one_of(
    st.none(),
    st.builds(Box, st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.001, 0.1), st.floats(0.001, 0.1)),
    st.just(Box(0.0, 0.0, 1.0, 1.0)),
)
masks = st.builds(
    lambda h, w, grey: torch.full((h, w), grey),
    st.sampled_from((1, 3, 200)),
    st.sampled_from((1, 5, 64)),
    st.sampled_from((0.0, 0.5, 1.0)),
)
regions = st.one_of(st.none(), st.none(), masks)
people = st.lists(
    st.tuples(st.one_of(st.floats(0, 3), finite), ranges, places, regions, st.integers(1, 9)), max_size=MAX_SUBJECTS
)
WIDGETS = (
    "weight",
    "sharpness",
    "background",
    "start_percent",
    "end_percent",
    "box_strength",
    "box_end_percent",
    "box_feather",
)
widgets = st.fixed_dictionaries({}, optional=dict.fromkeys(WIDGETS, numbers))


@cache
def studio():
    from support.host.small_casts import stage

    return stage("SD15", text_gain=True)


@both_ways(0.3, 0.0)
@pytest.mark.usefixtures("host")
@PROFILE
@given(
    people,
    widgets,
    st.sampled_from(tuple(MERGES)),
    st.sampled_from(((8, 8), (2, 3), (1, 32), (9, 7))),
    st.sampled_from((1, 2)),
    st.sampled_from((1.0, 5.0)),
)
def test_a_sample_of_any_cast_is_finite_or_refused(subjects, chosen, merge, size, batch, cfg):
    from support.host.small_casts import ksample
    from support.host.small_casts import settings as attention

    weights, spans, boxes, limits, lengths = zip(*subjects, strict=True) if subjects else ((), (), (), (), ())
    references = studio().references(
        len(subjects), list(weights), list(limits), list(spans), list(lengths), list(boxes)
    )
    try:
        wired = studio().apply(references, attention(merge, **chosen))
    except TroupeError as error:
        ACCEPTED.append(False)
        assert str(error).startswith("Expected ")
        return
    ACCEPTED.append(True)
    latent = ksample(*wired, size=size, batch=batch, cfg=cfg, steps=2)
    assert latent.shape == (batch, 4, *size) and bool(latent.isfinite().all())


sides = st.one_of(st.floats(0.001, 1), st.just(1.0), st.just(0.0))
drawn = st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1), sides, sides))
placed = st.lists(st.tuples(st.one_of(st.floats(0, 3), finite), ranges, drawn, st.booleans()), min_size=1, max_size=4)
gated_widgets = st.fixed_dictionaries(
    {},
    optional={
        "strength": st.one_of(st.floats(0, 2), numbers),
        "end_percent": st.one_of(st.floats(0, 1), numbers),
        "decay_percent": st.one_of(st.floats(0, 1), numbers),
        "use_bbox": st.sampled_from(("auto", "on", "off")),
    },
)


@cache
def gated_studio(kind):
    from support.host.small_gated_casts import gated_stage

    return gated_stage(kind)


@both_ways(0.3, 0.0)
@pytest.mark.usefixtures("host")
@PROFILE
@given(
    st.sampled_from(("text", "text_image", "patches")),
    placed,
    gated_widgets,
    st.sampled_from(((8, 8), (2, 3), (1, 16), (9, 7))),
    st.sampled_from((1, 2)),
    st.booleans(),
)
def test_a_sample_with_any_boxes_is_finite_or_refused(kind, subjects, chosen, size, batch, negative):
    from support.host.small_casts import ksample
    from troupe.model_patches.binding.settings import GatedSettings

    weights, spans, boxes, written = map(list, zip(*subjects, strict=True))
    references = gated_studio(kind).references(
        len(subjects), boxes, weights, spans, written if kind == "text_image" else None
    )
    try:
        wired = gated_studio(kind).apply(references, GatedSettings(**chosen), negative)
    except TroupeError as error:
        ACCEPTED.append(False)
        assert str(error).startswith("Expected ")
        return
    ACCEPTED.append(True)
    latent = ksample(*wired, size=size, batch=batch, steps=2)
    assert latent.shape == (batch, 4, *size) and bool(latent.isfinite().all())


def test_lists_and_searches_survive_every_file(host, base_folder):
    import folder_paths
    from troupe.model_patches.adapter import EncoderNeed
    from troupe.model_patches.hosts.comfyui.loading import adapters
    from troupe.nodes.load_adapter import LoadAdapter

    need, folder = EncoderNeed("pooled", 77), base_folder / "models"
    names = [
        "aa.bin",
        "aa [1]*?.safetensors",
        "aa\u202e.pt",
        "aa-00001-of-00002.safetensors",
        "unet_0_1.bin",
        "mlp_.bin",
        "custom_weights.bin",
        "aa\nb.sft",
    ]
    made = [folder / "ipadapter" / name for name in names]
    bags = {
        "safetensors": Bag(vision_encoder(33, 55)),
        "zip": Bag(vision_encoder(33, 55, "open_clip"), "zip"),
        "old": Bag(vision_encoder(33, 55), "old"),
    }
    good = folder / "clip_vision" / "zz good.safetensors"
    good.write_bytes(Bag(vision_encoder(66, 77)).bytes())
    made.append(good)
    try:
        for container, bag in bags.items():
            for i, kind in enumerate(classes(container)):
                path = (
                    folder
                    / "clip_vision"
                    / f"a{container} {i}.{'safetensors' if container == 'safetensors' else 'bin'}"
                )
                made.append(path)
                path.write_bytes(data := mutated(bag, kind, f"list:{i}"))
                made[i % len(names)].write_bytes(data)
        folder_paths.filename_list_cache.clear()
        assert set(names) <= set(adapters.adapter_names()) and good.name in adapters.clip_vision_names()
        assert (
            adapters.find_clip_vision(need) == good.name
            and adapters.find_clip_vision(EncoderNeed("pooled", 78)) is None
        )
        LoadAdapter.INPUT_TYPES()
        for name in names:
            assert adapters.invalid_names(f"ipadapter/{name}") is None and adapters.fingerprint(f"ipadapter/{name}")
            with pytest.raises(TroupeError):
                adapters.load_adapter(f"ipadapter/{name}")
    finally:
        for path in made:
            path.unlink(missing_ok=True)
        folder_paths.filename_list_cache.clear()
