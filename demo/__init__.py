"""A stand-in for the dataset: drawn road clips for people who do not have BDD100K."""
