"""Runs of the embedded engine in the rehearsal world that look at the subjects' places."""

from __future__ import annotations

ON_BOTH, CALM = 5116, 5002  # trials of "two classes": two subjects in one place, and two apart


def run(models, seed, warn=None, merge="relevance", steps=None):
    """The latent of a trial. warn: gets (step, sentence)."""
    from troupe.model_patches.attention.merges import Mixing
    from troupe.model_patches.binding.settings import ImageAttentionSettings
    from troupe.model_patches.hosts.diffusers.encoders import encode_references
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
    from troupe.rehearsal.engine.paint import CFG, STEPS, scheduler
    from troupe.rehearsal.engine.trials import cast_of, trial
    from troupe.rehearsal.world import PIXELS

    one = trial("two classes", seed)
    references = encode_references(models.adapters["mip"], cast_of(one.figures), models.images, models.texts)
    done = [0]
    latent = sample(
        models.unet,
        scheduler(),
        models.texts.encode_prompt(one.scene.caption),
        models.texts.encode_prompt(""),
        SamplingSettings(PIXELS, PIXELS, steps or STEPS, CFG, seed),
        [(references, ImageAttentionSettings(1.0, Mixing(merge)))],
        lambda step, of, _: done.append(step),
        warn=None if warn is None else lambda sentence: warn(done[-1], sentence),
    )
    return latent
