"""The content of results.json, of one run and of a sweep, and what it shows in words."""
