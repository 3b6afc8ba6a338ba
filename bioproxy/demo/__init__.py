"""A generated model and example templates, for ``--demo`` and for the tests."""
