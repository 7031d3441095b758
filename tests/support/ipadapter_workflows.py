"""Saved workflows with nodes of the pack IPAdapter_plus, as the front end saved them in 2024 (no names of widgets) or
saves them now; and one with a subgraph.
"""

from __future__ import annotations

from typing import Any

SOCKETS = {  # class -> sockets in order (name, type), widgets in order, outputs
    "CheckpointLoaderSimple": ((), ("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "CLIPTextEncode": ((("clip", "CLIP"),), ("text",), ("CONDITIONING",)),
    "EmptyLatentImage": ((), ("width", "height", "batch_size"), ("LATENT",)),
    "KSampler": (
        (("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")),
        ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        ("LATENT",),
    ),
    "VAEDecode": ((("samples", "LATENT"), ("vae", "VAE")), (), ("IMAGE",)),
    "SaveImage": ((("images", "IMAGE"),), ("filename_prefix",), ()),
    "LoadImage": ((), ("image", "upload"), ("IMAGE", "MASK")),
    "CLIPVisionLoader": ((), ("clip_name",), ("CLIP_VISION",)),
    "Reroute": ((("", "*"),), (), ("*",)),
    "Note": ((), ("text",), ()),
    "IPAdapterUnifiedLoader": ((("model", "MODEL"), ("ipadapter", "IPADAPTER")), ("preset",), ("MODEL", "IPADAPTER")),
    "IPAdapterUnifiedLoaderFaceID": (
        (("model", "MODEL"), ("ipadapter", "IPADAPTER")),
        ("preset", "lora_strength", "provider"),
        ("MODEL", "IPADAPTER"),
    ),
    "IPAdapterModelLoader": ((), ("ipadapter_file",), ("IPADAPTER",)),
    "PrepImageForClipVision": ((("image", "IMAGE"),), ("interpolation", "crop_position", "sharpening"), ("IMAGE",)),
    "IPAdapter": (
        (("model", "MODEL"), ("ipadapter", "IPADAPTER"), ("image", "IMAGE"), ("attn_mask", "MASK")),
        ("weight", "start_at", "end_at", "weight_type"),
        ("MODEL",),
    ),
    "IPAdapterAdvanced": (
        (
            ("model", "MODEL"),
            ("ipadapter", "IPADAPTER"),
            ("image", "IMAGE"),
            ("image_negative", "IMAGE"),
            ("attn_mask", "MASK"),
            ("clip_vision", "CLIP_VISION"),
        ),
        ("weight", "weight_type", "combine_embeds", "start_at", "end_at", "embeds_scaling"),
        ("MODEL",),
    ),
    "IPAdapterApply": (
        (
            ("ipadapter", "IPADAPTER"),
            ("clip_vision", "CLIP_VISION"),
            ("image", "IMAGE"),
            ("model", "MODEL"),
            ("attn_mask", "MASK"),
        ),
        ("weight", "noise", "weight_type", "start_at", "end_at", "unfold_batch"),
        ("MODEL",),
    ),
    "IPAdapterFromParams": (
        (
            ("model", "MODEL"),
            ("ipadapter", "IPADAPTER"),
            ("ipadapter_params", "IPADAPTER_PARAMS"),
            ("image_negative", "IMAGE"),
            ("clip_vision", "CLIP_VISION"),
        ),
        ("combine_embeds", "embeds_scaling"),
        ("MODEL",),
    ),
    "IPAdapterCombineParams": (
        tuple((f"params_{n}", "IPADAPTER_PARAMS") for n in range(1, 6)),
        (),
        ("IPADAPTER_PARAMS",),
    ),
    "IPAdapterRegionalConditioning": (
        (("image", "IMAGE"), ("mask", "MASK"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING")),
        ("image_weight", "prompt_weight", "weight_type", "start_at", "end_at"),
        ("IPADAPTER_PARAMS", "CONDITIONING", "CONDITIONING"),
    ),
    "ConditioningCombine": (
        (("conditioning_1", "CONDITIONING"), ("conditioning_2", "CONDITIONING")),
        (),
        ("CONDITIONING",),
    ),
    "SolidMask": ((), ("value", "width", "height"), ("MASK",)),
    "IPAdapterTiled": (
        (("model", "MODEL"), ("ipadapter", "IPADAPTER"), ("image", "IMAGE"), ("attn_mask", "MASK")),
        ("weight", "weight_type"),
        ("MODEL", "IMAGE", "MASK"),
    ),
}
ADVANCED = [1.0, "linear", "concat", 0.0, 1.0, "V only"]
PLUS = "PLUS (high strength)"


class OldWorkflow:
    """Nodes are put in with `node`, wired by `wire`; `saved` is the file."""

    def __init__(self, named: bool = True):
        self.named, self.saved = (
            named,
            {
                "last_node_id": 0,
                "last_link_id": 0,
                "nodes": [],
                "links": [],
                "groups": [],
                "config": {},
                "extra": {},
                "version": 0.4,
            },
        )

    def node(self, kind: str, *values: Any, **wires: tuple[int, int]) -> int:
        """A node's id; `wires`: input -> (node id, output slot)."""
        sockets, widgets, outputs = SOCKETS[kind]
        id_ = self.saved["last_node_id"] = self.saved["last_node_id"] + 1
        slots = [{"name": name, "type": type_, "link": None} for name, type_ in sockets]
        if self.named:
            slots += [{"name": name, "type": "COMBO", "widget": {"name": name}, "link": None} for name in widgets]
        place = (
            {"pos": [340 * id_, 100], "size": [315, 160]}
            if self.named
            else {"pos": {"0": 340 * id_, "1": 100}, "size": {"0": 315, "1": 160}}
        )
        self.saved["nodes"].append(
            {
                "id": id_,
                "type": kind,
                **place,
                "flags": {},
                "order": id_,
                "mode": 0,
                "inputs": slots,
                "outputs": [{"name": o, "type": o, "links": None} for o in outputs],
                "properties": {
                    "Node name for S&R": kind,
                    **({"cnr_id": "comfyui_ipadapter_plus"} if self.named and "IPA" in kind else {}),
                },
                "widgets_values": list(values),
            }
        )
        for name, source in wires.items():
            self.wire(source, id_, "" if name == "any" else name)
        return id_

    def raw(self, id_: int) -> dict:
        """A node's entry."""
        return next(raw for raw in self.saved["nodes"] if raw["id"] == id_)

    def wire(self, source: tuple[int, int], target: int, name: str) -> None:
        """Wire an output into an input by name."""
        link = self.saved["last_link_id"] = self.saved["last_link_id"] + 1
        output, slots = self.raw(source[0])["outputs"][source[1]], self.raw(target)["inputs"]
        into = [slot["name"] for slot in slots].index(name)
        kind = slots[into]["type"] if output["type"] == "*" else output["type"]
        self.saved["links"].append([link, *source, target, into, kind])
        output["links"] = [*(output["links"] or []), link]
        slots[into]["link"] = link

    def sampled(self, checkpoint: int, model: tuple[int, int]) -> dict:
        """The file, with prompts, sampler and a saved picture on a model."""
        texts = [
            self.node("CLIPTextEncode", text, clip=(checkpoint, 1)) for text in ("photo of a woman and a dog", "blurry")
        ]
        latent = self.node("EmptyLatentImage", 1024, 1024, 1)
        sampler = self.node(
            "KSampler",
            7,
            "fixed",
            4,
            5.0,
            "euler",
            "normal",
            1.0,
            model=model,
            positive=(texts[0], 0),
            negative=(texts[1], 0),
            latent_image=(latent, 0),
        )
        decoded = self.node("VAEDecode", samples=(sampler, 0), vae=(checkpoint, 2))
        self.node("SaveImage", "picture", images=(decoded, 0))
        return self.saved


def stacked_by_preset(named: bool = True) -> dict:
    """Unified Loader, two nodes on the MODEL wire: IPAdapter, then IPAdapter Advanced with mask, range and a prepared
    photo.
    """
    made = OldWorkflow(named)
    checkpoint = made.node("CheckpointLoaderSimple", "sd_xl_base_1.0.safetensors")
    loader = made.node("IPAdapterUnifiedLoader", PLUS, model=(checkpoint, 0))
    woman, dog, mask = (made.node("LoadImage", name, "image") for name in ("woman.png", "dog.png", "mask.png"))
    prepared = made.node("PrepImageForClipVision", "LANCZOS", "center", 0.0, image=(dog, 0))
    first = made.node(
        "IPAdapter", 0.8, 0.0, 1.0, "standard", model=(loader, 0), ipadapter=(loader, 1), image=(woman, 0)
    )
    second = made.node(
        "IPAdapterAdvanced",
        0.4,
        "linear",
        "concat",
        0.1,
        0.75,
        "V only",
        model=(first, 0),
        ipadapter=(loader, 1),
        image=(prepared, 0),
        attn_mask=(mask, 1),
    )
    made.node("Note", "my own note")
    made.saved["groups"].append({"title": "mine", "bounding": [300, 20, 900, 300], "color": "#fff"})
    return made.sampled(checkpoint, (second, 0))


def stacked_by_files() -> dict:
    """IPAdapter Model Loader and a CLIP vision loader, three nodes, a reroute on the MODEL wire."""
    made = OldWorkflow()
    checkpoint = made.node("CheckpointLoaderSimple", "v1-5-pruned-emaonly-fp16.safetensors")
    loader, vision = (
        made.node("IPAdapterModelLoader", "ip-adapter-plus_sd15.safetensors"),
        made.node("CLIPVisionLoader", "my_vit_h.safetensors"),
    )
    model = (checkpoint, 0)
    for number, weight in enumerate((1.0, 2.5, 0.5)):
        photo = made.node("LoadImage", f"photo_{number}.png", "image")
        node = made.node(
            "IPAdapterAdvanced",
            weight,
            *ADVANCED[1:],
            model=model,
            ipadapter=(loader, 0),
            image=(photo, 0),
            clip_vision=(vision, 0),
        )
        model = (made.node("Reroute", any=(node, 0)), 0) if number == 1 else (node, 0)
    return made.sampled(checkpoint, model)


def stacked_before_2024(*values: Any) -> dict:
    """Two nodes of the first version of the pack, the second with these widget values."""
    made = OldWorkflow(named=False)
    checkpoint = made.node("CheckpointLoaderSimple", "sd_xl_base_1.0.safetensors")
    loader, vision = (
        made.node("IPAdapterModelLoader", "ip-adapter-plus_sdxl_vit-h.safetensors"),
        made.node("CLIPVisionLoader", "my_vit_h.safetensors"),
    )
    model = (checkpoint, 0)
    for name, said in (
        ("woman", (0.5, 0.0, "original", 0.0, 0.6, False)),
        ("dog", values or (0.7, 0.0, "original", 0.0, 1.0, False)),
    ):
        photo = made.node("LoadImage", f"{name}.png", "image")
        model = (
            made.node(
                "IPAdapterApply", *said, ipadapter=(loader, 0), clip_vision=(vision, 0), image=(photo, 0), model=model
            ),
            0,
        )
    return made.sampled(checkpoint, model)


class Regional(OldWorkflow):
    """Three regions as parameters for one node: a knight and an owl with prompts of their own, and a photo without any.

    Ids by name in `ids`.
    """

    def __init__(self, named: bool = True):
        super().__init__(named)
        ids = self.ids = {"checkpoint": self.node("CheckpointLoaderSimple", "v1-5-pruned-emaonly-fp16.safetensors")}
        ids["loader"] = self.node("IPAdapterUnifiedLoader", PLUS, model=(ids["checkpoint"], 0))
        prompts = {
            name: self.node("CLIPTextEncode", text, clip=(ids["checkpoint"], 1))
            for name, text in (
                ("knight", "drawing of an old knight with a blue banner"),
                ("not knight", "rust"),
                ("owl", "a painting of a (white owl:1.2), forest"),
            )
        }
        for number, (name, weight, prompt_weight) in enumerate(
            (("knight", 0.8, 1.5), ("owl", 0.4, 1.0), ("moss", 0.6, 1.0))
        ):
            photo, mask = self.node("LoadImage", f"photo_{number}.png", "image"), self.node("SolidMask", 1.0, 512, 512)
            wires = {"positive": (prompts[name], 0)} if name in prompts else {}
            wires |= {"negative": (prompts[f"not {name}"], 0)} if f"not {name}" in prompts else {}
            ids[name] = self.node(
                "IPAdapterRegionalConditioning",
                weight,
                prompt_weight,
                "linear",
                0.1 * number,
                1.0,
                image=(photo, 0),
                mask=(mask, 0),
                **wires,
            )
            ids[f"{name}'s photo"], ids[f"{name}'s mask"] = photo, mask
        ids["combined"] = self.node(
            "IPAdapterCombineParams",
            **{f"params_{n}": (ids[name], 0) for n, name in enumerate(("knight", "owl", "moss"), 1)},
        )
        ids["applied"] = self.node(
            "IPAdapterFromParams",
            "concat",
            "V only",
            model=(ids["loader"], 0),
            ipadapter=(ids["loader"], 1),
            ipadapter_params=(ids["combined"], 0),
        )
        self.sampled(ids["checkpoint"], (ids["applied"], 0))
        sampler = next(raw["id"] for raw in self.saved["nodes"] if raw["type"] == "KSampler")
        for name, slot, own in (("positive", 1, ("knight", "owl")), ("negative", 2, ("knight",))):
            for region in own:
                self.add_prompt(sampler, name, (ids[region], slot))
        ids["sampler"] = sampler

    def add_prompt(self, sampler: int, name: str, prompt: tuple[int, int]) -> None:
        """Combine one more prompt into a sampler's input."""
        slot = next(slot for slot in self.raw(sampler)["inputs"] if slot["name"] == name)
        link = next(link for link in self.saved["links"] if link[0] == slot["link"])
        self.saved["links"].remove(link)
        self.raw(link[1])["outputs"][link[2]]["links"] = None
        joined = self.node("ConditioningCombine", conditioning_1=(link[1], link[2]), conditioning_2=prompt)
        self.wire((joined, 0), sampler, name)


def with_subgraph() -> dict:
    """Checkpoint, latent, and a subgraph that holds the prompt and the sampler; its text and steps are widgets of the
    subgraph node.
    """

    def slot(name: str, kind: str, link: int | None = None, widget: bool = False) -> dict:
        return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}

    sampler = [
        slot("model", "MODEL", 4),
        slot("positive", "CONDITIONING", 2),
        slot("negative", "CONDITIONING", 3),
        slot("latent_image", "LATENT", 5),
    ]
    sampler += [
        slot(n, "INT", 6 if n == "steps" else None, widget=True)
        for n in ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    ]
    inner = [
        {
            "id": 1,
            "type": "CLIPTextEncode",
            "inputs": [slot("clip", "CLIP", 1), slot("text", "STRING", 7, widget=True)],
            "outputs": [{"name": "C", "type": "CONDITIONING"}],
            "widgets_values": ["inside"],
        },
        {
            "id": 2,
            "type": "KSampler",
            "inputs": sampler,
            "outputs": [{"name": "LATENT", "type": "LATENT"}],
            "widgets_values": [1, "fixed", 20, 5.0, "euler", "normal", 1.0],
        },
    ]
    ends = [
        (1, -10, 0, 1, 0, "CLIP"),
        (2, 1, 0, 2, 1, "CONDITIONING"),
        (3, 1, 0, 2, 2, "CONDITIONING"),
        (4, -10, 1, 2, 0, "MODEL"),
        (5, -10, 2, 2, 3, "LATENT"),
        (6, -10, 3, 2, 5, "INT"),
        (7, -10, 4, 1, 1, "STRING"),
        (8, 1, 0, -20, 0, "CONDITIONING"),
        (9, 2, 0, -20, 1, "LATENT"),
    ]
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), end, strict=True))
        for end in ends
    ]
    # in an order of its own, and without the widgets
    outer = [slot("latent", "LATENT", 3), slot("clip", "CLIP", 1), slot("model", "MODEL", 2)]
    inputs = [{"name": name} for name in ("clip", "model", "latent", "steps", "text")]
    nodes = [
        {
            "id": 1,
            "type": "CheckpointLoaderSimple",
            "inputs": [slot("ckpt_name", "COMBO", widget=True)],
            "widgets_values": ["here.safetensors"],
            "outputs": [{"name": n, "type": n} for n in ("MODEL", "CLIP", "VAE")],
        },
        {
            "id": 2,
            "type": "EmptyLatentImage",
            "inputs": [slot(n, "INT", widget=True) for n in ("width", "height", "batch_size")],
            "widgets_values": [512, 512, 1],
            "outputs": [{"name": "LATENT", "type": "LATENT"}],
        },
        {
            "id": 3,
            "type": "abc",
            "inputs": outer,
            "outputs": [{"name": k, "type": k} for k in ("CONDITIONING", "LATENT")],
            "widgets_values": [30, "a dog"],
        },
        {"id": 4, "type": "Either", "inputs": [slot("any", "IMAGE,MASK", 4)], "outputs": [], "widgets_values": []},
    ]
    return {
        "nodes": nodes,
        "links": [
            [1, 1, 1, 3, 1, "CLIP"],
            [2, 1, 0, 3, 2, "MODEL"],
            [3, 2, 0, 3, 0, "LATENT"],
            [4, 3, 1, 4, 0, "LATENT"],
        ],
        "definitions": {
            "subgraphs": [{"id": "abc", "name": "Sampling", "inputs": inputs, "nodes": inner, "links": links}]
        },
    }
