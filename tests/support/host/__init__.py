"""What the tests on a real ComfyUI share.

Most modules need the host: import them inside a test, or where its fixture has begun.
"""
