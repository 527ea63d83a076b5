"""The table of a sweep as files: CSV, Markdown, JSON and LaTeX."""
