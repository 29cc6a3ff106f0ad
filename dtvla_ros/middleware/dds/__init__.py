"""rclpy's names over the PyPI wheels of Cyclone DDS and rosbags."""
