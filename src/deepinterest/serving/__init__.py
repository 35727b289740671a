"""A trained model at work: raw values in, probabilities out. It needs the run's folder and no prepared data."""
