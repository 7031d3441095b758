"""What several tests share: cases, files, small models and stored outputs. conftest.py puts tests/ on sys.path."""
