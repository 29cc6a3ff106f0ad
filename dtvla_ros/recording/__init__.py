"""The graph kept in bags, bags made into datasets, and the graph shown in Rerun."""
