"""MuJoCo scenes that look like a robot with cameras: the tabletop suite."""
