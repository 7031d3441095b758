"""Nodes that exist only in the browser: the host never sees them, so none of its lists has them."""

from __future__ import annotations

NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
PASSING = (REROUTE, "Reroute (rgthree)")  # their first input is their output
# a Get node gives what the Set node of its name takes
SETTERS, GETTERS = ("SetNode", "easy setNode"), ("GetNode", "easy getNode")
EVERYWHERE = ("Anything Everywhere", "Anything Everywhere3")  # wire what they take to every free input of its type
CHOOSY = "Anything Everywhere?"  # to those whose names its patterns find
PROMPTS_EVERYWHERE = "Prompts Everywhere"
OWN = (*NOTES, REROUTE, PRIMITIVE)  # of the front end itself
RGTHREE = (
    "Reroute (rgthree)",
    "Fast Muter (rgthree)",
    "Fast Bypasser (rgthree)",
    "Fast Groups Muter (rgthree)",
    "Fast Groups Bypasser (rgthree)",
    "Fast Actions Button (rgthree)",
    "Node Collector (rgthree)",
    "Node Combiner (rgthree)",
    "Mute / Bypass Repeater (rgthree)",
    "Mute / Bypass Relay (rgthree)",
    "Random Unmuter (rgthree)",
    "Bookmark (rgthree)",
    "Label (rgthree)",
)
PACKS = {  # class -> the pack that adds it, by its name in the registry, and a part of its folder's name
    **dict.fromkeys(RGTHREE, ("rgthree-comfy", "rgthree")),
    **dict.fromkeys(("SetNode", "GetNode"), ("comfyui-kjnodes", "kjnodes")),
    **dict.fromkeys(("easy setNode", "easy getNode"), ("comfyui-easy-use", "easyuse")),
    **dict.fromkeys((*EVERYWHERE, CHOOSY, PROMPTS_EVERYWHERE), ("cg-use-everywhere", "useeverywhere")),
}


def is_virtual(kind: str) -> bool:
    """Return whether a node class exists only in the browser, or does its work there."""
    return kind in OWN or kind in PACKS
