"""Workflows as files: read, checked, edited and converted, with the model files that they name. No model is loaded."""
