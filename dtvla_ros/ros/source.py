"""Where rclpy comes from (replaced at the merge)."""


def require_one_ros() -> None:
    """Do nothing yet."""
