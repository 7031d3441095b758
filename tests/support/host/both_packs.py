"""Whether Troupe and another pack both act on one MODEL."""

import torch

BOTH_ACT = 0.3  # of the change that either makes alone

VISIBLE = 0.003  # of the picture: what either must change alone

SAME = 1e-4  # of the smaller change


def both_act(found, *, visible=VISIBLE):
    __tracebackhide__ = True
    assert torch.isfinite(found.before).all() and torch.isfinite(found.after).all()
    assert min(found.effects) > visible
    assert found.partner_acts > BOTH_ACT and found.we_act > BOTH_ACT
