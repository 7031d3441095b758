"""Running a workflow: in a ComfyUI server of its own or on the embedded engine, or the rehearsal; and saving the
results.
"""
