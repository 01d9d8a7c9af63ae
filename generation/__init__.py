"""What generate.py makes with: a run's sampler, a file for each mode, and tables of pictures."""
