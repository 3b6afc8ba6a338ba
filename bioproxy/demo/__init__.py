"""A real llama.cpp with a model made up on the spot: for ``--demo`` and for the tests."""
