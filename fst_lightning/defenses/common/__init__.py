"""What several defenses share: their base classes, data, masks and inversions."""
