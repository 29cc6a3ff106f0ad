"""The operator's page: what it shows, who may open it, and its server. Knows no ROS."""
