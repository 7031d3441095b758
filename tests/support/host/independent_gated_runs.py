"""Runs of Apply Gated Adapter compared with the independent evaluation."""


def check(st, references, settings, size=(8, 8), batch=1, cfg=5.0, steps=2, negative=True, **rest):
    """Sampling through the hook equals the plain evaluation to 1e-3 of the adapter's effect."""
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import error, ksample, noise_of

    found = ksample(*st.apply(references, settings, negative), size=size, batch=batch, cfg=cfg, steps=steps)
    noise = noise_of(size, batch)
    expected = independent_gated.sample(
        st.patcher, [st.truth(references, settings)], st.positive, st.negative, noise, steps, cfg, **rest
    )
    without = independent_gated.sample(st.patcher, [], st.positive, st.negative, noise, steps, cfg, **rest)
    assert error(found, expected, without) < 1e-3
