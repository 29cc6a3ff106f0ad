"""Where measurements happen: on loopback, in a ROS domain that no arm listens to."""

from __future__ import annotations

import os
import random


def use_own_domain() -> None:
    """Let this process, and those it starts, talk to each other only."""
    os.environ.update({
        'ROS_DOMAIN_ID': str(random.SystemRandom().randint(101, 220)),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'ROS_STATIC_PEERS': ''})
