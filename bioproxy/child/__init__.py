"""The llama.cpp that bioproxy starts itself, if the setting `model` names a model file."""
