"""The tabletop scene as a Gazebo world, made from the MuJoCo model itself and never stored."""
