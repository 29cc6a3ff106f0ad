"""The demonstration: three node processes, watched over their topics."""
