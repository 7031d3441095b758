"""Runs of the guiders: their schedule, and predictions in it."""


def prediction(patcher, x, sigma, conditioning, truth, role, kind):
    """The denoised picture of one branch, in a model call of its own. truth: of image attention, of gated layers, or
    None.
    """
    from support.host import independent_evaluation as independent
    from support.host import independent_gated_evaluation as independent_gated

    model, (h, w) = patcher.model, x.shape[-2:]
    conds = model.extra_conds(
        noise=x,
        device=x.device,
        cross_attn=conditioning[0][0],
        prompt_type=kind,
        width=w * 8,
        height=h * 8,
        **conditioning[0][1],
    )
    context, extra = (
        conds["c_crossattn"].cond.expand(len(x), -1, -1),
        {k: v.cond.expand(len(x), *v.cond.shape[1:]) for k, v in conds.items() if k == "y"},
    )
    if truth is None:
        return model.apply_model(x, sigma, c_crossattn=context, **extra)
    if isinstance(truth, independent_gated.GatedTruth):
        return independent_gated.predict(model, [truth], role, x, sigma, context, extra=extra)
    with independent.replaced(model.diffusion_model, [truth], role, (h, w)):
        return model.apply_model(x, sigma, c_crossattn=context, **extra)


def schedule(patcher, steps):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(patcher.model.model_sampling, "normal", steps)


def percent_of(patcher, sigma):
    """Where the host's percent_to_sigma gives this sigma, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if patcher.model.model_sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return low
