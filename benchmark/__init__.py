"""What bench.py measures with, and on."""
