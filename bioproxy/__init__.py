"""A proxy that makes long prompts answer at once, in front of one llama.cpp `llama-server`."""

__version__ = "0.1.0"
