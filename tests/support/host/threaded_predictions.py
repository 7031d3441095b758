"""Newer hosts run the conditioning entries of a prediction in threads, each on a clone of the MODEL with modules of its
own. Here the same is done to the host that is there, on one device: its own `_calc_cond_batch` runs in every thread.
Needs the host."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager

import torch

PATIENCE = 30.0  # seconds that one thread waits for the other


def twin_of(model, make):
    """A clone of a sampled MODEL as the host makes one for another device: the UNet loaded anew (`make()`), every
    attached model made anew by its own `cached_patcher_init`."""
    twin = model.clone()
    twin.model, twin.backup, twin.object_patches_backup = make().model, {}, {}
    for key, patchers in model.additional_models.items():
        twin.additional_models[key] = [again(patcher) for patcher in patchers]
    return twin


def again(patcher):
    """One more of an attached model.

    Hosts without multi-GPU do not copy how to make it when they clone, so the original is asked.
    """
    while patcher.cached_patcher_init is None:
        patcher = patcher.parent
    make, given = patcher.cached_patcher_init
    return make(*given)


@contextmanager
def loaded(*twins):
    """The twins ready to sample, as the host makes them when a run begins."""
    for twin in twins:
        twin.patch_model()
        twin.model.current_patcher = twin
    try:
        yield
    finally:
        for twin in twins:
            twin.model.current_patcher = None
            twin.unpatch_model()


class Meeting:
    """Forward hooks that make two UNets wait for each other in the middle of a call, and dawdle at random, so that
    their threads overlap.
    """

    def __init__(self, *models, seed=0):
        self.barrier, self.random, self.met = threading.Barrier(len(models)), random.Random(seed), 0
        unets = [model.model.diffusion_model for model in models]
        self._hooks = [
            module.register_forward_pre_hook(self._wait)
            for unet in unets
            for module in (unet.input_blocks[1][1], unet.middle_block[1])
        ]
        self._hooks += [
            module.register_forward_hook(self._dawdle)
            for unet in unets
            for name, module in unet.named_modules()
            if name.endswith(("attn1", "attn2"))
        ]

    def _wait(self, *_):
        self.met += self.barrier.wait(PATIENCE) == 0

    def _dawdle(self, *_):
        time.sleep(self.random.random() * 0.002)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()


@contextmanager
def split(models, at_once=True):
    """While it holds, entry i of a prediction (all lists in a row) is run on model i, i + n, ... of n, each model in a
    thread of its own; one after the other where not `at_once`. All entries have to have the same strength and no area.
    """
    import comfy.samplers

    original = comfy.samplers._calc_cond_batch

    def in_threads(model, conds, x_in, timestep, model_options):
        found, problems = [None] * len(models), []
        places = iter(range(sum(len(entries or ()) for entries in conds)))
        whose = [[next(places) % len(models) for _ in entries or ()] for entries in conds]

        def run(i):
            mine = [
                [entry for entry, owner in zip(entries or (), owners, strict=True) if owner == i]
                for entries, owners in zip(conds, whose, strict=True)
            ]
            try:
                with torch.no_grad():  # as the host does there, where inference mode does not reach
                    found[i] = original(models[i].model, mine, x_in, timestep, model_options)
            except Exception as problem:
                problems.append(problem)
                raise

        threads = [threading.Thread(target=run, args=(i,), name=f"device {i}") for i in range(len(models))]
        for thread in threads:
            thread.start()
            if not at_once:
                thread.join()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        shares = [torch.tensor([owners.count(i) / max(len(owners), 1) for i in range(len(models))]) for owners in whose]
        return [
            sum(share * part[index] for share, part in zip(shares[index], found, strict=True))
            for index in range(len(conds))
        ]

    comfy.samplers._calc_cond_batch = in_threads
    try:
        yield
    finally:
        comfy.samplers._calc_cond_batch = original


def sample(model, positive, negative, seed=1, steps=2, size=(8, 8)):
    """As KSampler, without the random numbers that all threads share."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", steps)
    return guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
    )
