"""Models that annotate pictures, as transformers has them: Grounding DINO, SAM 2 or SAM, BLIP, CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...model_patches.subjects import Box
from .making import Detection
from .records import DatasetError
from .selection import clipped

AT_ONCE = 32  # words in one question; more would not fit into Grounding DINO's 256 tokens


class GroundingDino:
    """Open-vocabulary detection.

    model, processor: from transformers; threshold: smallest score of a box; overlap: intersection over union from which
    the weaker of two boxes of one word is dropped. Subject-Diffusion's values: 0.25 and 0.5.
    """

    def __init__(self, model: Any, processor: Any, threshold: float = 0.25, overlap: float = 0.5):
        self.model, self.processor = model.eval(), processor
        self.threshold, self.overlap = threshold, overlap

    @classmethod
    def load(cls, name: str, device: str, threshold: float = 0.25) -> GroundingDino:
        """Load a model by its folder or its name on the Hugging Face hub."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        model = loaded(AutoModelForZeroShotObjectDetection, name).to(device)
        return cls(model, loaded(AutoProcessor, name), threshold)

    def __call__(self, pictures: Sequence[Image.Image], words: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return for each picture where its words are, highest score first.

        A box gets the word with the highest score, over the word's tokens.
        """
        found: list[list[Detection]] = [[] for _ in pictures]
        questions = [
            (i, chunk) for i, asked in enumerate(words) for chunk in _chunks([w for w in asked if w.strip()], AT_ONCE)
        ]
        for batch in _chunks(questions, max(len(pictures), 1)):
            answers = self._ask([pictures[i] for i, _ in batch], [chunk for _, chunk in batch])
            for (i, chunk), (boxes, scores) in zip(batch, answers, strict=True):
                found[i] += self._detections(chunk, boxes, scores)
        return [sorted(detections, key=lambda one: -one.score) for detections in found]

    @torch.inference_mode()
    def _ask(
        self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Boxes, [queries, 4] as centre and size in 0..1, and scores, [queries, words], of each question."""
        texts = [" ".join(f"{word.casefold()}." for word in words) for words in questions]
        inputs = self.processor(images=list(pictures), text=texts, return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        outputs = self.model(**inputs)
        answers = []
        for words, ids, logits, boxes in zip(
            questions, inputs["input_ids"], outputs.logits.float(), outputs.pred_boxes.float(), strict=True
        ):
            spans = word_spans(self.processor.tokenizer, words, ids.tolist())
            scores = logits.sigmoid()  # minus infinity, that is 0, for padding
            answers.append((boxes, torch.stack([scores[:, span].amax(1) for span in spans], 1)))
        return answers

    def _detections(self, words: Sequence[str], boxes: torch.Tensor, scores: torch.Tensor) -> list[Detection]:
        from torchvision.ops import batched_nms, box_convert

        best, which = scores.max(1)
        sure = best > self.threshold
        boxes, best, which = box_convert(boxes[sure], "cxcywh", "xyxy"), best[sure], which[sure]
        found = []
        for i in batched_nms(boxes, best, which, self.overlap).tolist():
            left, top, right, bottom = boxes[i].tolist()
            box = clipped(Box(left, top, right - left, bottom - top))
            if box is not None:
                found.append(Detection(words[int(which[i])], box, float(best[i])))
        return found


def word_spans(tokenizer: Any, words: Sequence[str], ids: Sequence[int]) -> list[list[int]]:
    """Return the positions of each word's tokens in the ids of 'cat. red car.'.

    Raises:
        DatasetError: the ids do not hold every word.
    """
    special, full_stop = set(tokenizer.all_special_ids), tokenizer.convert_tokens_to_ids(".")
    spans: list[list[int]] = [[]]
    for position, token in enumerate(ids):
        if token == full_stop:
            spans.append([])
        elif token not in special or token == tokenizer.unk_token_id:
            spans[-1].append(position)
    if len(spans) != len(words) + 1 or not all(spans[:-1]):
        raise DatasetError(
            f"a tokenizer that reads {len(words)} words with full stops",
            f"{len(spans) - 1} in '{' '.join(words)[:60]}'",
            "Use Grounding DINO's own tokenizer, and words of letters only.",
        )
    return spans[:-1]


class Sam:
    """Masks for boxes, by SAM 2 or SAM.

    model, processor: from transformers.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(cls, name: str, device: str) -> Sam:
        """Load SAM 2 or SAM by its folder or its name on the Hugging Face hub.

        Raises DatasetError for another model.
        """
        import transformers

        kind = loaded(transformers.AutoConfig, name).model_type
        if not kind.startswith("sam2") and kind != "sam":
            raise DatasetError(
                f"SAM or SAM 2 in {name}",
                f"a model of type '{kind}'",
                "Give the folder or the hub name of one of these.",
            )
        family = "Sam2" if kind.startswith("sam2") else "Sam"
        if not hasattr(transformers, f"{family}Model"):
            raise DatasetError(
                "a transformers with SAM 2", transformers.__version__, "Run: pip install -U transformers"
            )
        model = loaded(getattr(transformers, f"{family}Model"), name).to(device)
        return cls(model, loaded(getattr(transformers, f"{family}Processor"), name))

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, boxes: Sequence[Box]) -> list[np.ndarray]:
        """Return a mask, [h, w] bool, for each box."""
        w, h = picture.size
        corners = [[box.x * w, box.y * h, (box.x + box.w) * w, (box.y + box.h) * h] for box in boxes]
        inputs = self.processor(images=picture, input_boxes=[corners], return_tensors="pt").to(self.model.device)
        outputs = self.model(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False
        )
        sizes = [inputs["original_sizes"].cpu()]
        if "reshaped_input_sizes" in inputs:  # SAM pads, SAM 2 does not
            sizes.append(inputs["reshaped_input_sizes"].cpu())
        masks = self.processor.post_process_masks(outputs.pred_masks.float().cpu(), *sizes)[0]
        return [mask[0].numpy().astype(bool) for mask in masks]


class ClipFeatures:
    """CLIP's projected embeddings of pictures and texts.

    model, processor: from transformers; name: where the model was loaded from."""

    def __init__(self, model: Any, processor: Any, name: str = "CLIP"):
        self.model, self.processor, self.name = model.eval(), processor, name

    @classmethod
    def load(cls, name: str, device: str) -> ClipFeatures:
        """Load a CLIP model by its folder or its name on the Hugging Face hub."""
        from transformers import CLIPModel, CLIPProcessor

        return cls(loaded(CLIPModel, name).to(device), loaded(CLIPProcessor, name), name)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the embeddings of pictures, [n, E]."""
        return self.embedded(self.processor(images=list(pictures), return_tensors="pt")["pixel_values"])

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of pictures as the network reads them, [n, 3, S, S] -> [n, E]."""
        weight = next(self.model.parameters())
        return _embedding(self.model.get_image_features(pixel_values=pixels.to(weight)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of texts, [n, E]; what does not fit into the model is cut off."""
        most = self.model.config.text_config.max_position_embeddings
        inputs = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=most)
        inputs = inputs.to(self.model.device)
        return _embedding(
            self.model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        )


def _embedding(output: Any) -> torch.Tensor:
    """Newer versions of transformers return it in an object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class Blip:
    """Captions.

    model, processor: from transformers; tokens: longest caption.
    """

    def __init__(self, model: Any, processor: Any, tokens: int = 40):
        self.model, self.processor, self.tokens = model.eval(), processor, tokens

    @classmethod
    def load(cls, name: str, device: str) -> Blip:
        """Load BLIP by its folder or its name on the Hugging Face hub."""
        from transformers import BlipForConditionalGeneration, BlipProcessor

        return cls(loaded(BlipForConditionalGeneration, name).to(device), loaded(BlipProcessor, name))

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each picture."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        ids = self.model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=self.tokens)
        return [" ".join(text.split()) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


def loaded(kind: Any, name: str, **options: Any) -> Any:
    """Return `kind.from_pretrained(name, **options)`; name: a folder, or a name on the Hugging Face hub.

    Raises:
        DatasetError: there is no such model. transformers' long message is shortened to its first line.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise DatasetError(
            f"the model {name}", first, "Check the name and the network, or give the folder of a download."
        ) from error


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
