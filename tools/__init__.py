"""Tools around the product, used by tests, demo and development; none of it is installed with the package."""
