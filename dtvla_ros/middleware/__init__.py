"""ROS 2 with or without a ROS installation.

``ros`` and ``messages`` hand out the genuine rclpy and message packages where they import, else
the same names over Cyclone DDS (``dds``), which genuine ROS 2 machines see as ordinary nodes.
``images`` converts camera messages to numpy and back under both.
"""
