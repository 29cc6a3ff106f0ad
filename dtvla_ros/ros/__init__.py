"""What nodes share around rclpy: running them, images, conversions, QoS, processes."""
