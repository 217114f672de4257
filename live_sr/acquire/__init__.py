"""The acquisition side: pymmcore-plus in, super-resolved frames out. Imports no torch."""
