"""Troupe: several subjects from reference photos in one picture, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The host's way in; imports wait until here, so that the package can be loaded without a host."""
    from .model_patches.hosts.comfyui.loading.samples import provide_photos
    from .nodes import Troupe

    provide_photos()
    return Troupe()
