"""Pictures for the page, for papers and for loggers."""
