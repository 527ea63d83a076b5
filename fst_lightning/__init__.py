"""Train backdoored image classifiers and purify them."""
