"""The processes of the graph: policy, gate, simulator, overlay."""

import sys

from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros

try:
    require_one_ros()
except UserError as error:
    # A node is a program of its own: nobody else turns this into one line.
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None
