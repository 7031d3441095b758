"""Runs of Apply Image Attention compared with the independent evaluation."""

TOLERANCE = 1e-3  # of the references' effect


def check(st, references, chosen, size=(8, 8), batch=1, cfg=5.0, steps=2, wired=True, **truth):
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of

    noise = noise_of(size, batch)
    expected = independent.sample(
        st.patcher, st.truth(references, chosen, **truth), st.positive, st.negative, noise, steps, cfg
    )
    without = independent.sample(st.patcher, None, st.positive, st.negative, noise, steps, cfg)
    found = ksample(*st.apply(references, chosen, wired), size, batch, steps, cfg)
    off = error(found, expected, without)
    assert off < TOLERANCE, (
        f"off by {off:.2g} of the references' effect, {TOLERANCE} is allowed: the pack and "
        f"tests/support/host/independent_evaluation.py disagree (merge {chosen.mixing.merge})"
    )
    return found
