"""Builds the documentation site: pages generated from the code, formulas, and links."""
