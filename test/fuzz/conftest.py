"""A ROS domain of our own, and how a test shows that it was not flooded."""

from __future__ import annotations

import os
import random

os.environ['ROS_DOMAIN_ID'] = str(random.SystemRandom().randint(1, 100))
