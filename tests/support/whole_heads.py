"""The parts of image attention on tensors whose heads are joined and whose tokens are not prepared: what `image_delta`
does before and after them.
"""

import torch
from troupe.model_patches.attention.decoupled import LayerTokens, attend
from troupe.model_patches.attention.heads import join_heads, split_heads
from troupe.model_patches.attention.relevance import relevance_of_heads


def image_attention(query, keys, values, weights, heads, joint=False, valid_tokens=None):
    """query [G, B, N, C], keys, values [G, S, C], weights [G, B, M, N], valid_tokens [1 or G, S] bool -> [G, B,
    N, C].
    """
    tokens = LayerTokens(keys, values, valid_tokens=valid_tokens).prepared(heads)
    return join_heads(attend(split_heads(query.flatten(1, 2), heads), tokens, weights, joint)).view_as(query)


def relevance(query, name_keys, segments, heads):
    """query [G, B, N, C], name_keys [G, L, C], segments [G, M, L] -> A [G, B, M, N]."""
    tokens = LayerTokens(name_keys, torch.zeros_like(name_keys), name_keys, segments).prepared(heads)
    return relevance_of_heads(split_heads(query.flatten(1, 2), heads), tokens.split.names, segments, query.shape[1])
