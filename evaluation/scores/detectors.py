"""Where the subjects are in a painted picture: Grounding DINO, or the rehearsal world's recogniser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image

from ...model_patches.scores.regions import SubjectRegion, region_of_mask
from ...rehearsal.cast import called_for
from ...rehearsal.engine.recogniser import Recogniser, Sighting, recognise
from ...training.data.models import GroundingDino
from .features import as_tensor

INSTANCES = 3  # at most so many of one name, as XVerseBench counts them
FOUND = "detector"


class Detector(Protocol):
    """Finder of subjects by their names. name: of the model, for the report."""

    name: str

    def regions(self, picture: Image.Image, names: Sequence[str]) -> list[list[SubjectRegion]]:
        """Return for each name up to INSTANCES places, the surest first; [] where it is not in the picture."""
        ...


class GroundingDetector:
    """Grounding DINO's boxes.

    model: the detector; name: for the report.
    """

    def __init__(self, model: GroundingDino, name: str = "Grounding DINO"):
        self.model, self.name = model, name

    def regions(self, picture: Image.Image, names: Sequence[str]) -> list[list[SubjectRegion]]:
        """See Detector."""
        [found] = self.model([picture], [list(dict.fromkeys(names))])
        return [[SubjectRegion(one.box, FOUND) for one in found if one.word == name][:INSTANCES] for name in names]


class OncePerPicture:
    """A detector that several scorers ask for the same subjects of one picture: it looks once."""

    def __init__(self, detector: Detector):
        self.detector, self.name = detector, detector.name
        self._last: tuple[Image.Image, list[str], list[list[SubjectRegion]]] | None = None

    def regions(self, picture: Image.Image, names: Sequence[str]) -> list[list[SubjectRegion]]:
        """See Detector."""
        last = self._last
        if last is None or last[0] is not picture or last[1] != list(names):
            self._last = last = (picture, list(names), self.detector.regions(picture, names))
        return last[2]


class RehearsalDetector:
    """The recogniser's figures of a name's class, the largest first; of its variant too, where several names are of
    one class.
    """

    name = "rehearsal recogniser"

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    def regions(self, picture: Image.Image, names: Sequence[str]) -> list[list[SubjectRegion]]:
        """See Detector."""
        sightings = recognise(self.recogniser, as_tensor(picture).movedim(-1, 0)[None])[0]
        wanted = [next(iter(called_for(name)), None) for name in names]
        kinds = [None if figure is None else figure.kind for figure in wanted]
        found = []
        for figure in wanted:
            fitting: list[Sighting] = []
            if figure is not None:
                twins = kinds.count(figure.kind) > 1
                fitting = [
                    one for one in sightings if one.kind == figure.kind and (not twins or one.variant == figure.variant)
                ]
            fitting.sort(key=lambda one: -int(one.mask.sum()))
            regions = [region_of_mask(torch.from_numpy(one.mask).float(), FOUND, cut_out=True) for one in fitting]
            found.append([region for region in regions if region is not None][:INSTANCES])
        return found
