"""The live page: its own process, fed by PUB; it can hang or die and nothing else notices."""
