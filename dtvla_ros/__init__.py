"""DeepThinkVLA as a ROS 2 package: a policy that writes down its thought, then acts."""
