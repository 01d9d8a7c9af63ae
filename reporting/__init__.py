"""What report.py shows of runs: the study's figures, pictures, and the page."""
