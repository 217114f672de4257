"""Restores what was stored before: image files and whole volumes, after or long after the acquisition."""
