"""The study's trainings as configs and tables, and which of them finished runs are or come nearest to."""
