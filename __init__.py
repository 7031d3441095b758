"""Troupe: several subjects from reference photos in one picture, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The host's way in; imports wait until here, so that the package can be loaded without a host."""
    from .nodes import Troupe

    return Troupe()
