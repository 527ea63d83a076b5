"""Readers of file formats that never run the code of a file."""
