"""A real llama.cpp with a generated model, for ``--demo`` and for the tests."""
