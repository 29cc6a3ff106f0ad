"""ROS 2: what the nodes use of rclpy."""
