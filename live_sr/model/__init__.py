"""The network, its file, and the engine that runs it."""
