"""The tabletop scene as a Gazebo world, made from the MuJoCo model at hand and never stored."""
