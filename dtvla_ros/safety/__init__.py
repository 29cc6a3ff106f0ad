"""What may reach an arm, and what stops it. No ROS, no torch."""
