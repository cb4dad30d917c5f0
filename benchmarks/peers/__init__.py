"""The engines that `compare_peers.py` runs, each in an environment of its own."""
