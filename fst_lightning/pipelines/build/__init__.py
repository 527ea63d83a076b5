"""Makes the parts of a run from its configuration and checks them first."""
