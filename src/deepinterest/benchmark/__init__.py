"""`python -m deepinterest.benchmark`: how fast the product's own path is, on one workload made up from a seed."""
