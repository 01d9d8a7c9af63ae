"""What evaluate.py measures with: frames, passes over them, and what becomes of a result."""
