"""The promises again, on the real llama.cpp and with twistd in processes of its own."""
