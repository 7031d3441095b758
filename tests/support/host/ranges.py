"""Which calls of a run lie in a range of percents."""


def in_range(conditioning, start, end):
    import nodes

    node = nodes.ConditioningSetTimestepRange()
    return getattr(node, node.FUNCTION)(conditioning, start, end)[0]
