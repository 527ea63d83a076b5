"""Shared parts of defenses: base classes, data, masks and inversions."""
