"""Chooses the strength of a defense on clean images alone."""
