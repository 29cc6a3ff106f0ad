"""Thin ROS 2 nodes: topics in, topics out."""
