"""Lets ``python -m dtvla_ros.cli`` run the command."""

from dtvla_ros.cli import main

main()
