"""Tiny benchmarks in the published layouts, with random pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

PROMPTS = """Classes

subject_name,class
backpack,backpack
cat,cat
dog6,dog
red_cartoon,cartoon

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]
"""


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def dreambench(folder: Path) -> Path:
    for i, name in enumerate(("backpack", "cat", "dog6", "red_cartoon")):
        for number in ("00", "02")[: 1 + i % 2]:
            save_photo(folder / name / f"{number}.jpg", 10 * i + int(number))
    (folder / "prompts_and_classes.txt").write_text(PROMPTS)
    (folder / "references_and_licenses.txt").write_text("one, two\n")
    return folder


def concept(name: str, photos: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new1> {name}",
        "class_prompt": name,
        "instance_data_dir": f"./benchmark_dataset/{photos}",
        "class_data_dir": f"./regularization/{name}",
        "prompt_filename": f"prompts/{name}.txt",
    }


def concept101(folder: Path, photos: int = 2) -> Path:
    compose = {"prompt_filename_compose": "prompts/furniture_furniture.txt"}
    pairs = [
        [concept("sofa", "furniture_sofa1"), concept("chair", "furniture_chair1"), compose],
        [concept("chair", "furniture_chair1"), concept("sofa", "furniture_chair3"), compose],
    ]
    for i, name in enumerate(("furniture_sofa1", "furniture_chair1", "furniture_chair3")):
        for number in range(photos):
            save_photo(folder / "benchmark_dataset" / name / f"{number}.jpeg", 10 * i + number)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "furniture_furniture.txt").write_text(
        "photo of {0} and the {1}.\nA photo of {0} at dawn with {0}.\n\n{1} near {0}. \n"
    )
    (folder / "dataset_multiconcept.json").write_text(json.dumps(pairs))
    return folder


def concept_boxes(folder: Path, benchmark: Path) -> Path:
    """MIP-Adapter's json_data: a box for each photo of a Concept101, in pixels of a photo with a shorter side of 800.

    The first photo of a concept has a wide box that begins above the photo, the others a high one.
    """
    for photo in (path for path in (benchmark / "benchmark_dataset").rglob("*") if path.is_file()):
        first = photo.stem == "0"
        box = [99.9, -0.7, 730.2, 300.5] if first else [400.5, 20.25, 600.75, 790.0]
        path = folder / photo.parent.name / f"{photo.name.split('.')[0]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        masks = [{"value": 0, "label": "background"}, {"value": 1, "label": "x", "logit": 0.9, "box": box}]
        path.write_text(json.dumps({"caption": "x", "mask": masks}))
    return folder


def dreambench_plus(folder: Path) -> Path:
    for i, (name, subject) in enumerate((("animal/00", "Kitten"), ("object/07", "vintage camera"))):
        save_photo(folder / "images" / f"{name}.jpg", i)
        path = folder / "captions" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{subject}\na {subject.lower()} on a table\nan oil painting of a {subject.lower()}\n")
    return folder


def xverse(folder: Path) -> Path:
    entries = [
        {
            "index": 4,
            "prompt": "A woman with red hair holds a teapot beside a dog.\n",
            "modulation": [
                {
                    "use_words": [["x", "woman", 0], ["x", "tea set", 0], ["x", "dog", 0]],
                    "src_inputs": [
                        {"image_path": f"data/{name}.png", "caption": caption}
                        for name, caption in (("a", "a woman"), ("b", "a teapot"), ("c", "a brown dog"))
                    ],
                }
            ],
        }
    ]
    for i, name in enumerate("abc"):
        save_photo(folder / "data" / f"{name}.png", i)
    path = folder / "eval" / "tools" / "XVerseBench_multi.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries))
    return folder
