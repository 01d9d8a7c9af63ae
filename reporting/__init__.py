"""What report.py shows of runs: the study's tables and figures, pictures, and the page."""
