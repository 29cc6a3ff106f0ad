"""How fast the package is on this machine, measured through real processes."""
