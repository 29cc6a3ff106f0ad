"""What people call things and tasks, and the network that learns it."""
