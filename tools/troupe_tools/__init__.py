"""The code behind the commands of tools/, in themes that import one way: workflow <- engine <- commands and dev."""
