"""What users call: the options of each command, and what it prints."""
