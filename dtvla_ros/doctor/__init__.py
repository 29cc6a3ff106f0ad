"""A running graph, held against what the nodes of this package need."""
